"""What tells glibc's allocator to keep the memory that a process has freed; other systems ignore it.

Passes of ever other sizes ask for and free many large tensors. By default much of that goes back to the system each
time and is asked for, and cleared, again: an eighth of a training step's time (MiniLM, two processes on two cores).
The variables are read when a process starts, so they belong into a worker's environment.
"""

KEEP_FREED = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
}
