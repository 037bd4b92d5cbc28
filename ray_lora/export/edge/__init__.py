"""What is copied beside a graph: `runner.py`, and of each task its `rows.py`. It imports nothing of this library."""
