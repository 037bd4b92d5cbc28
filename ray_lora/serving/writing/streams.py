"""One request's answers in the making, as the event loop sees them. Knows no engine and no texts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ray_lora.inference.decoder import Written
from ray_lora.inference.sampling import Sampling


@dataclass(frozen=True)
class Ask:
    """A prompt that is to have `sampling.n` answers by a slot's adapter; one of `ends` ends an answer.

    Attributes:
        owner: the content hash of what is in the slot.
    """

    slot: int
    ids: Sequence[int]
    sampling: Sampling
    ends: Collection[int]
    owner: str | None = None


@dataclass(eq=False)
class Part:
    """One ask of a stream.

    Attributes:
        first: the number of its first answer.
        joined: whether its rows are in the making.
        is_first: whether its key had no rows when it was to join.
        rows: of its answers, once it has joined; unwanted: numbers of answers that were given up. Both are the engine's
            thread's alone.
    """

    stream: Stream
    ask: Ask
    first: int
    since: float
    joined: bool = False
    is_first: bool = False
    rows: list[int] = field(default_factory=list)
    unwanted: set[int] = field(default_factory=set)

    @property
    def count(self) -> int:
        """Answers."""
        return self.ask.sampling.n

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)


class Stream:
    """The answers to one request, (number, written) as they are written, numbered in the order of asks and their `n`.
    Ends when all have ended.

    Attributes:
        open: answers that have not ended. begun: whether anything was written.
    """

    def __init__(self, key: str, asks: Sequence[Ask], stop: Callable[[Stream, int], None]) -> None:
        self.key, self._stop = key, stop
        self.parts: list[Part] = []
        number = 0
        for ask in asks:
            self.parts.append(Part(self, ask, number, time.monotonic()))
            number += ask.sampling.n
        self.open, self.begun = set(range(number)), False
        self._found: asyncio.Queue[tuple[int, Written] | BaseException] = asyncio.Queue()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> tuple[int, Written]:
        if not self.open and self._found.empty():
            raise StopAsyncIteration
        found = await self._found.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def tell(self, found: tuple[int, Written] | BaseException) -> None:
        """Let the reader have what was written, or why no more will be."""
        self.begun = True
        self._found.put_nowait(found)

    def stop(self, number: int) -> None:
        """End one answer; one that has ended is left alone."""
        if number in self.open:
            self.open.discard(number)
            self._stop(self, number)

    def fail(self, error: BaseException) -> None:
        """Give up what has not ended; the reader hears why."""
        for number in list(self.open):
            self.stop(number)
        self.tell(error)
