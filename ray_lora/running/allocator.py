"""What a process that computes is told of memory. The variables are read when it starts, so they belong into a worker's
environment.

Passes of ever other sizes ask for and free many large tensors. By default glibc gives much of that back to the system
each time, and it is asked for, and cleared, again: an eighth of a training step's time (MiniLM, two processes on two
cores).

And for each shape of a product oneDNN makes a primitive of about a megabyte and keeps the last 1,024: 1.1 GB in a
replica that reads texts of all lengths, and 0.75 GB with half as many, at the same speed. A step has five times as many
products as a pass without a backward, and takes a tenth longer when half of theirs are forgotten: packs keep them all.
"""

_PRIMITIVES = 512  # shapes of products; with 128, texts of about one length cost 8 % more

WORKER_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
}
REPLICA_ENV = WORKER_ENV | {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(_PRIMITIVES),
    "LRU_CACHE_CAPACITY": str(_PRIMITIVES),  # the same for what torch keeps of them
}
