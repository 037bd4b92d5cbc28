"""Copies of requests for versions whose answers are only recorded. They never delay or fail the answers that count.

A copy starts when the real answer is known, its rows take only places in a batch that real rows leave, and it is
dropped (and counted) while `most` rows of copies are under way. Knows no HTTP and no engine.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence

from ray_lora.recipe import Json
from ray_lora.serving.gate import OverloadedError
from ray_lora.serving.trials.results import Results
from ray_lora.serving.trials.tally import Arm, did_it


class Shadows:
    """Runs copies in the background. Use from one event loop."""

    def __init__(self, results: Results, most: int) -> None:
        self.results, self.most = results, most
        self.inside = 0  # rows under way
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, arm: Arm, rows: int, answer: Callable[[], Awaitable[Sequence[Json]]]) -> None:
        """Take a copy of a request on, or drop it."""
        if self.inside and self.inside + rows > self.most:
            self.results.dropped(arm)
            return
        self.inside += rows
        # in a context of its own: what the copy leaves there is not the request's
        task = contextvars.Context().run(asyncio.create_task, self._run(arm, rows, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, arm: Arm, rows: int, answer: Callable[[], Awaitable[Sequence[Json]]]) -> None:
        began = time.perf_counter()
        try:
            predictions = await answer()
        except Exception as error:
            if isinstance(error, OverloadedError):
                self.results.dropped(arm)
            elif did_it(error):
                self.results.failed(arm)
        else:
            self.results.answered(arm, None, time.perf_counter() - began, predictions)
        finally:
            self.inside -= rows
