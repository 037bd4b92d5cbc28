"""Rows of many requests into batches, one batch at a time. Knows nothing of adapters, tensors or HTTP.

While one batch computes the next gathers; what waits is taken when the engine is free and nothing more arrives, and who
comes to an idle engine does not wait. A batch takes one row of each key in turn, beginning with
the key whose oldest row has waited longest, so that a flooding key fills what others leave and no more. Background rows
take only the places that all others leave.

    answers = await batcher.submit("tweets@3", rows)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ray_lora.serving.metrics.trace import current

# Those who were just answered often ask again, and a row costs less in a larger batch: longer than this between two of
# them, and no more are on their way.
_QUIET_S = 0.004
R = TypeVar("R")
T = TypeVar("T")


@dataclass(eq=False)
class _Request(Generic[R, T]):
    """One request's rows; `left` rows are not answered yet."""

    rows: Sequence[R]
    answers: list[T | None]
    left: int
    done: asyncio.Future[list[T]]
    since: float
    next: int = 0  # the first row not yet in a batch
    began: float = 0.0  # when its first row was taken into a batch


@dataclass
class BatchStats:
    """Counters since the start."""

    batches: int = 0
    rows: int = 0
    seconds: float = 0.0  # spent computing


@dataclass
class _Batch(Generic[R, T]):
    places: list[tuple[_Request[R, T], int]] = field(default_factory=list)


class Batcher(Generic[R, T]):
    """Fair batches of at most `max_rows` rows, computed by `run` in `executor`.

    Args:
        run: answers of rows, in order; called with rows of one request alone when a mixed call raised, so that a row
            that cannot be computed fails its own request only.
        executor: one thread, the only one that computes.
    """

    def __init__(self, run: Callable[[list[R]], list[T]], executor: Executor, max_rows: int = 32) -> None:
        self.max_rows = max_rows
        self.stats = BatchStats()
        self.on_batch: Callable[[int, float], None] = lambda rows, seconds: None  # told of every batch computed
        self._run, self._executor = run, executor
        self._queues: dict[tuple[bool, str], deque[_Request[R, T]]] = {}  # by (background, key)
        self._waiting = 0
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Rows that are in no batch yet."""
        return self._waiting

    async def submit(self, key: str, rows: Sequence[R], background: bool = False) -> list[T]:
        """The rows' answers. Cancelling takes those not yet in a batch out of the queue."""
        done: asyncio.Future[list[T]] = asyncio.get_running_loop().create_future()
        request: _Request[R, T] = _Request(rows, [None] * len(rows), len(rows), done, time.monotonic())
        self._queues.setdefault((background, key), deque()).append(request)
        self._waiting += len(rows)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            answers = await done
            trace = current()
            trace.queue_s, trace.compute_s = request.began - request.since, time.monotonic() - request.began
            return answers
        finally:
            if request.next < len(rows):
                self._leave((background, key), request)

    async def close(self) -> None:
        """Stop; requests still queued are cancelled."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for queue in self._queues.values():
            for request in queue:
                request.done.cancel()

    def _leave(self, key: tuple[bool, str], request: _Request[R, T]) -> None:
        queue = self._queues.get(key)
        if queue is not None and request in queue:
            queue.remove(request)
            self._waiting -= len(request.rows) - request.next
            if not queue:
                del self._queues[key]

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queues:
            batch = self._take()
            began = time.monotonic()
            try:
                outcomes = await loop.run_in_executor(self._executor, self._compute, batch)
            except BaseException:  # closing: nobody may wait for ever
                for request, _ in batch.places:
                    request.done.cancel()
                raise
            seconds = time.monotonic() - began
            self.stats.batches += 1
            self.stats.rows += len(batch.places)
            self.stats.seconds += seconds
            self.on_batch(len(batch.places), seconds)
            for (request, index), outcome in zip(batch.places, outcomes, strict=True):
                _settle(request, index, outcome)
            await self._gather(seconds)

    async def _gather(self, seconds: float) -> None:
        """Let what arrives now join what waits, until nothing came for a moment; at most as long as the last batch."""
        until, seen = time.monotonic() + seconds, 0
        while seen < self._waiting < self.max_rows and (left := until - time.monotonic()) > 0:
            seen = self._waiting
            await asyncio.sleep(min(_QUIET_S, left))
        await asyncio.sleep(0)

    def _take(self) -> _Batch[R, T]:
        batch: _Batch[R, T] = _Batch()
        for background in (False, True):
            self._fill(batch, background)
        return batch

    def _fill(self, batch: _Batch[R, T], background: bool) -> None:
        keys = (key for key in self._queues if key[0] == background)
        turn = deque(sorted(keys, key=lambda key: self._queues[key][0].since))
        while turn and len(batch.places) < self.max_rows:
            key = turn.popleft()
            queue = self._queues[key]
            request = queue[0]
            request.began = request.began or time.monotonic()
            batch.places.append((request, request.next))
            request.next += 1
            self._waiting -= 1
            if request.next == len(request.rows):
                queue.popleft()
            if queue:
                turn.append(key)
            else:
                del self._queues[key]

    def _compute(self, batch: _Batch[R, T]) -> list[T | Exception]:
        """In the computing thread: every row's answer or error."""
        try:
            return list(self._run([request.rows[index] for request, index in batch.places]))
        except Exception as error:
            requests = {id(request): request for request, _ in batch.places}
            if len(requests) == 1:
                return [error] * len(batch.places)
        outcomes: dict[tuple[int, int], T | Exception] = {}
        for request in requests.values():
            indices = [index for other, index in batch.places if other is request]
            try:
                answers: Sequence[T | Exception] = self._run([request.rows[index] for index in indices])
            except Exception as error:
                answers = [error] * len(indices)
            outcomes.update(((id(request), index), answer) for index, answer in zip(indices, answers, strict=True))
        return [outcomes[id(request), index] for request, index in batch.places]


def _settle(request: _Request[R, T], index: int, outcome: T | Exception) -> None:
    if request.done.done():
        return  # cancelled, or another of its rows failed
    if isinstance(outcome, Exception):
        request.done.set_exception(outcome)
        return
    request.answers[index] = outcome
    request.left -= 1
    if request.left == 0:
        request.done.set_result(request.answers)  # type: ignore[arg-type]  # all are answered now
