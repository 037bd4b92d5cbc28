"""How many answers one API key may have in the making, and how long an answer may take. Knows no engine, no texts and
no HTTP.

    with limits.enter(key, answers=2): ...
    with timed(stream, began, args, key): ...
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ray_lora.serving.args import AppArgs
from ray_lora.serving.gate import OverloadedError
from ray_lora.serving.http.keys import Key
from ray_lora.serving.writing.streams import Stream


class KeyLimits:
    """Counts the answers of each key between arrival and end."""

    def __init__(self) -> None:
        self.inside_of: Counter[str] = Counter()

    @contextmanager
    def enter(self, key: Key, answers: int) -> Iterator[None]:
        """Count a key's answers while the block runs.

        Raises:
            OverloadedError: its limit would be passed. A key that has none in the making gets any number.
        """
        inside, most = self.inside_of[key.key], key.writing_answers
        if inside and most is not None and inside + answers > most:
            raise OverloadedError(f"{inside} answers are written for this key already (limit {most})", 429)
        self.inside_of[key.key] += answers
        try:
            yield
        finally:
            self.inside_of[key.key] -= answers
            if not self.inside_of[key.key]:
                del self.inside_of[key.key]


@contextmanager
def timed(stream: Stream, began: float, args: AppArgs, key: Key) -> Iterator[None]:
    """Give an answer up whose first token, or last, does not come in time.

    Args:
        began: `time.perf_counter()` when it arrived.
    """
    loop, passed = asyncio.get_running_loop(), time.perf_counter() - began
    longest = args.writing_s if key.writing_s is None else min(key.writing_s, args.writing_s)

    def first() -> None:
        if not stream.begun:
            stream.fail(OverloadedError(f"no token within {args.deadline_s:g} s; try again later"))

    def last() -> None:
        stream.fail(OverloadedError(f"the answer did not end within {longest:g} s; lower max_tokens"))

    timers = [loop.call_later(args.deadline_s - passed, first), loop.call_later(longest - passed, last)]
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
