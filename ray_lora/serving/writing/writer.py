"""Answers of many requests written token by token: rows join and leave between steps. Beside `batcher.py`, whose
answers take one pass, and in the same thread: where both have work, a step and a batch take turns. Knows nothing of
adapters, texts, tensors or HTTP.

    async with writer.open("chat", [Ask(slot, ids, sampling, ends)]) as stream:
        async for number, written in stream:
            ...
            stream.stop(number)                      # it has said enough

Who waits joins as soon as there is room: first the keys with the fewest rows, then those that have waited longest. A
key that has rows leaves a part of all room to keys that have none, so that one that floods does not hold up the first
answer of another. Whoever leaves the block, for whatever reason, has left the engine before anything that is sent to
its thread later: a slot may be given up at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from ray_lora.serving.writing.streams import Ask, Part, Stream
from ray_lora.serving.writing.turns import SPARE, Steps, Turn, Turns


@dataclass
class WriterStats:
    """Counters since the start."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0  # spent computing
    prompt_tokens: int = 0  # read
    prefix_hits: int = 0  # prompts that began with what was kept of another
    prefix_tokens: int = 0  # that were not read again

    def add(self, turn: Turn) -> None:
        """What one turn did."""
        self.steps += 1
        self.tokens += len(turn.written)
        self.seconds += turn.seconds
        self.prompt_tokens += turn.prompt_tokens
        self.prefix_hits += turn.prefix_hits
        self.prefix_tokens += turn.prefix_tokens


class Writer:
    """Writes with what `make` gives.

    Args:
        make: called in the executor when it is first needed, and again as long as it raises.
        executor: one thread, the only one that computes.
        max_rows: that are written at once, by all keys.
        after: this one takes no step while that one has any to take.
    """

    def __init__(
        self, make: Callable[[], Steps], executor: Executor, max_rows: int = 32, after: Writer | None = None
    ) -> None:
        self.max_rows, self.stats = max_rows, WriterStats()
        self.on_step: Callable[[int, float], None] = lambda tokens, seconds: None  # told of every step
        self._turns, self._executor, self._after = Turns(make), executor, after
        self._queues: dict[str, deque[Part]] = {}  # that have not joined, by key
        self._running: Counter[str] = Counter()  # answers in the making, by key
        self._streams: set[Stream] = set()
        self._worker: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """Answers in the making."""
        return sum(self._running.values())

    @property
    def waiting(self) -> int:
        """Answers that have not been begun."""
        return sum(part.count for queue in self._queues.values() for part in queue)

    @asynccontextmanager
    async def open(self, key: str, asks: Sequence[Ask]) -> AsyncIterator[Stream]:
        """Have answers written for as long as the block runs; those that have not ended then are given up.

        Raises (from the stream):
            CapacityError: an ask is larger than all there is room for.
            Exception: what `make`, or the step of its rows, raised.
        """
        stream = Stream(key, asks, self._stop)
        self._streams.add(stream)
        self._queues.setdefault(key, deque()).extend(stream.parts)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            self._close(stream)

    async def rest(self) -> None:
        """Wait until nothing is to be written."""
        while self._worker is not None and not self._worker.done():
            await asyncio.wait([self._worker])

    async def forget(self, owners: Collection[str]) -> int:
        """Keep nothing of the prompts of some contents; of how many something was kept."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._turns.forget, owners)

    async def close(self) -> None:
        """Stop; whoever waits is cancelled."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._end_all()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queues or self._running:
                if self._after is not None:
                    await self._after.rest()
                turn = await loop.run_in_executor(self._executor, self._turns.take, self._next())
                self._settle(turn)
                self.stats.add(turn)
                self.on_step(len(turn.written), turn.seconds)
                await asyncio.sleep(0)  # those who read may end an answer before the next step
        except BaseException:  # closing: nobody may wait for ever
            self._end_all()
            raise

    def _end_all(self) -> None:
        for stream in self._streams:
            self._close(stream)
            stream.tell(asyncio.CancelledError())

    def _next(self) -> list[Part]:
        """Who may join now, in order."""
        mine, rows = Counter(self._running), self.running
        waiting = {key: deque(queue) for key, queue in self._queues.items()}
        chosen: list[Part] = []
        while waiting:
            key = min(waiting, key=lambda key: (mine[key], waiting[key][0].since))
            part = waiting[key].popleft()
            part.is_first = mine[key] == 0
            most = self.max_rows if part.is_first else self.max_rows - self.max_rows // SPARE
            if rows and rows + part.count > most:
                del waiting[key]
                continue
            chosen.append(part)
            mine[key] += part.count
            rows += part.count
            if not waiting[key]:
                del waiting[key]
        return chosen

    def _settle(self, turn: Turn) -> None:
        for part in turn.joined:
            if self._unqueue(part):  # else it was given up meanwhile
                part.joined = True
                count = len(part.stream.open.intersection(part.numbers))
                if count:
                    self._running[part.stream.key] += count
        for stream, number, written in turn.written:
            if number in stream.open:
                stream.tell((number, written))
                if written.reason is not None:
                    stream.open.discard(number)
                    self._ended(stream.key)
        for stream, error in turn.failed:
            self._close(stream)
            stream.tell(error)

    def _stop(self, stream: Stream, number: int) -> None:
        part = next(part for part in stream.parts if number in part.numbers)
        if part.joined:
            self._ended(stream.key)
        self._drop(part, [number])

    def _close(self, stream: Stream) -> None:
        """Give up what has not ended."""
        for part in stream.parts:
            self._unqueue(part)
            given_up = stream.open.intersection(part.numbers)
            if part.joined:
                for _ in given_up:
                    self._ended(stream.key)
            if given_up:
                self._drop(part, given_up)
        stream.open.clear()

    def _ended(self, key: str) -> None:
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]

    def _unqueue(self, part: Part) -> bool:
        """Take an ask out of its queue; whether it was there."""
        queue = self._queues.get(part.stream.key)
        if queue is None or part not in queue:
            return False
        queue.remove(part)
        if not queue:
            del self._queues[part.stream.key]
        return True

    def _drop(self, part: Part, numbers: Collection[int]) -> None:
        with suppress(RuntimeError):  # the thread has stopped, and with it all rows
            self._executor.submit(self._turns.drop, part, numbers)
