"""Which adapters are in slots and which in RAM."""
