"""Where engine and task meet to answer: rows of any adapters, in few passes. Knows no Ray."""
