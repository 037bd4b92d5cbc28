"""How much may wait at once: for the whole endpoint and for one adapter. Knows nothing but counts.

with gate.enter("tweets", rows=3): ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ray_lora.errors import CapacityError


class OverloadedError(CapacityError):
    """The request cannot be taken now; `status` is 429 (its adapter's share is used up) or 503 (the endpoint's is)."""

    def __init__(self, message: str, status: int = 503, retry_after_s: int = 1) -> None:
        super().__init__(message, status, retry_after_s)  # all three, so that it pickles
        self.status, self.retry_after_s = status, retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class Gate:
    """Counts the rows between arrival and answer."""

    def __init__(self, total: int, per_adapter: int) -> None:
        self.total, self.per_adapter = total, per_adapter
        self.inside = 0
        self.inside_of: Counter[str] = Counter()

    @contextmanager
    def enter(self, name: str, rows: int = 1) -> Iterator[None]:
        """Count `rows` of one adapter while the block runs.

        Raises:
            OverloadedError: a limit would be passed. An idle endpoint takes a request of any size.
        """
        if self.inside_of[name] and self.inside_of[name] + rows > self.per_adapter:
            raise OverloadedError(
                f"{self.inside_of[name]} rows of {name!r} wait already (limit {self.per_adapter})", 429
            )
        if self.inside and self.inside + rows > self.total:
            raise OverloadedError(f"{self.inside} rows wait already (limit {self.total}); try again later", 503)
        self.inside += rows
        self.inside_of[name] += rows
        try:
            yield
        finally:
            self.inside -= rows
            self.inside_of[name] -= rows
            if not self.inside_of[name]:
                del self.inside_of[name]
