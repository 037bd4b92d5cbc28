"""Adapters: low-rank tensors, head and card; on disk a PEFT folder. They know no engines and no stores."""
