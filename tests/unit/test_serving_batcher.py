"""Batches: full, fair, one at a time; and how much may wait."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ray_lora.serving import batcher as module
from ray_lora.serving.batcher import Batcher
from ray_lora.serving.gate import Gate, OverloadedError


class Slow:
    """Doubles numbers; each call waits for the gate, and records what it was given."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.open = threading.Event()

    def __call__(self, rows: list[int]) -> list[int]:
        self.calls.append(rows)
        self.open.wait()
        if -1 in rows:
            raise ValueError("-1 cannot be doubled")
        return [2 * row for row in rows]


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_who_comes_to_an_idle_engine_does_not_wait(thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUIET_S", 600)  # whoever waits for it never ends

    async def main() -> None:
        slow = Slow()
        slow.open.set()
        batcher = Batcher(slow, thread, max_rows=8)
        for row in range(3):
            assert await batcher.submit("a", [row]) == [2 * row]

    run(main)


def test_what_keeps_arriving_joins_what_waits(thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUIET_S", 0.5)

    async def main() -> None:
        slow = Slow()
        batcher = Batcher(slow, thread, max_rows=8)
        first = asyncio.create_task(batcher.submit("a", [1]))
        await asyncio.sleep(1)  # how long the batch took is how long the next may gather
        late = [asyncio.create_task(batcher.submit("a", [2]))]
        await asyncio.sleep(0)
        slow.open.set()
        await first
        for row in (3, 4, 5):
            late.append(asyncio.create_task(batcher.submit("b", [row])))
            await asyncio.sleep(0.02)
        assert await asyncio.gather(*late) == [[4], [6], [8], [10]]
        assert [sorted(call) for call in slow.calls] == [[1], [2, 3, 4, 5]]

    run(main)


@pytest.mark.parametrize("waiting", [[2], [2, 3, 4, 5]], ids=["after a short batch", "a full batch"])
def test_gathering_is_short_beside_a_batch(
    waiting: list[int], thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUIET_S", 600)

    async def main() -> None:
        slow = Slow()
        batcher = Batcher(slow, thread, max_rows=4)
        first = asyncio.create_task(batcher.submit("a", [1]))
        await asyncio.sleep(0.01)
        rest = asyncio.create_task(batcher.submit("b", waiting))
        await asyncio.sleep(0)
        slow.open.set()
        assert await asyncio.gather(first, rest) == [[2], [2 * row for row in waiting]]

    run(main)


def test_what_waits_is_one_batch_and_answers_go_home(thread: ThreadPoolExecutor) -> None:
    async def main() -> None:
        slow = Slow()
        batcher = Batcher(slow, thread, max_rows=8)
        first = asyncio.create_task(batcher.submit("a", [1]))
        await asyncio.sleep(0.01)
        rest = [
            asyncio.create_task(batcher.submit(key, rows)) for key, rows in {"a": [2, 3], "b": [4], "c": [5]}.items()
        ]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 4
        slow.open.set()
        assert await first == [2]
        assert await asyncio.gather(*rest) == [[4, 6], [8], [10]]
        assert len(slow.calls) == 2
        assert sorted(slow.calls[1]) == [2, 3, 4, 5]
        assert batcher.waiting == 0

    run(main)


def test_background_rows_take_only_what_others_leave(thread: ThreadPoolExecutor) -> None:
    async def main() -> None:
        slow = Slow()
        batcher = Batcher(slow, thread, max_rows=4)
        first = asyncio.create_task(batcher.submit("a", [1]))
        await asyncio.sleep(0.01)
        copies = [asyncio.create_task(batcher.submit("a", [9, 9, 9], background=True))]
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.submit(key, [2, 3, 4])) for key in ("a", "b")]
        gone = asyncio.create_task(batcher.submit("c", [7], background=True))
        await asyncio.sleep(0.01)
        gone.cancel()
        slow.open.set()
        assert await first == [2]
        assert await asyncio.gather(*rest, *copies) == [[4, 6, 8], [4, 6, 8], [18, 18, 18]]
        assert [sorted(call) for call in slow.calls] == [[1], [2, 2, 3, 3], [4, 4, 9, 9], [9]]
        assert batcher.waiting == 0

    run(main)


def test_a_flood_does_not_hold_others_back(thread: ThreadPoolExecutor) -> None:
    async def main() -> None:
        slow = Slow()
        batcher = Batcher(slow, thread, max_rows=4)
        flood = [asyncio.create_task(batcher.submit("flood", [number])) for number in range(100, 140)]
        await asyncio.sleep(0.01)
        quiet = [asyncio.create_task(batcher.submit(key, [number])) for number, key in enumerate("ab")]
        await asyncio.sleep(0.01)
        slow.open.set()
        await asyncio.gather(*quiet, *flood)
        assert {0, 1} <= set(slow.calls[1])  # the first batch after they came
        assert len(slow.calls[1]) == 4

    run(main)


def test_a_row_that_cannot_be_computed_fails_its_own_request(thread: ThreadPoolExecutor) -> None:
    async def main() -> None:
        slow = Slow()
        slow.open.set()
        batcher = Batcher(slow, thread)
        requests = [batcher.submit("a", [1]), batcher.submit("a", [2, -1]), batcher.submit("b", [3])]
        good, bad, other = await asyncio.gather(*requests, return_exceptions=True)
        assert (good, other) == ([2], [6])
        assert isinstance(bad, ValueError)

    run(main)


def test_a_cancelled_request_leaves_the_queue(thread: ThreadPoolExecutor) -> None:
    async def main() -> None:
        slow = Slow()
        batcher = Batcher(slow, thread, max_rows=2)
        first = asyncio.create_task(batcher.submit("a", [1]))
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(batcher.submit("a", [7] * 10))
        last = asyncio.create_task(batcher.submit("b", [9]))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert batcher.waiting == 1
        slow.open.set()
        assert await first == [2]
        assert await last == [18]
        assert not any(7 in call for call in slow.calls)

    run(main)


def test_a_large_request_is_cut_into_batches(thread: ThreadPoolExecutor) -> None:
    async def main() -> None:
        slow = Slow()
        slow.open.set()
        batcher = Batcher(slow, thread, max_rows=4)
        assert await batcher.submit("a", list(range(10))) == list(range(0, 20, 2))
        assert [len(call) for call in slow.calls] == [4, 4, 2]

    run(main)


def test_closing_cancels_what_waits(thread: ThreadPoolExecutor) -> None:
    async def main() -> None:
        slow = Slow()
        batcher = Batcher(slow, thread)
        tasks = [asyncio.create_task(batcher.submit("a", [1]))]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(batcher.submit("a", [2])))
        await asyncio.sleep(0.01)
        slow.open.set()
        await batcher.close()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(isinstance(outcome, asyncio.CancelledError) or outcome == [2] for outcome in outcomes)

    run(main)


def test_the_gate_names_who_is_over_which_limit() -> None:
    gate = Gate(total=5, per_adapter=3)
    with gate.enter("a", 3), gate.enter("b", 1):
        with pytest.raises(OverloadedError, match=r"3 rows of 'a'.*limit 3") as mine, gate.enter("a"):
            pass
        assert mine.value.status == 429
        with pytest.raises(OverloadedError, match="limit 5") as everyone, gate.enter("c", 2):
            pass
        assert everyone.value.status == 503
        with gate.enter("c", 1):
            assert gate.inside == 5
    assert gate.inside == 0
    with gate.enter("a", 50):  # alone, a request of any size is taken
        pass


def test_an_overload_pickles() -> None:
    error = pickle.loads(pickle.dumps(OverloadedError("full", 429, 3)))
    assert (str(error), error.status, error.retry_after_s) == ("full", 429, 3)
