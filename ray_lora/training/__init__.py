"""Where engine and task meet to train: the adapters of one pack. Knows no Ray, no trackers and no files of rows."""
