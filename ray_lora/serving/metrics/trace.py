"""What happened to the request that is being answered: which adapter, how many rows, how long each stage took.

Whoever answers a request opens a trace; the layers below write into `current()` what they know and never ask who reads.
Requests are asyncio tasks, so a context variable tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Trace:
    """One request."""

    adapter: str = ""  # name@version, once it is known to exist
    rows: int = 0
    encode_s: float | None = None  # to read the inputs: a picture's decoding, a text's tokens
    queue_s: float | None = None  # from the batcher's queue until its first row was taken
    compute_s: float | None = None  # from there to its last answer


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace:
    """The trace of the request that is being answered; outside of one, a trace that nobody reads."""
    return _current.get() or Trace()


@contextmanager
def traced(trace: Trace) -> Iterator[None]:
    """Make this the current trace for as long as the block runs."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)
