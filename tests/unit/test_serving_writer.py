"""Rows of many requests that join and leave between steps; what writes is a stand-in that counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ray_lora.errors import CapacityError
from ray_lora.inference.decoder import Written
from ray_lora.inference.prefixes import Prefixes
from ray_lora.inference.sampling import Choice, Sampling
from ray_lora.serving.batcher import Batcher
from ray_lora.serving.writing.streams import Ask, Stream
from ray_lora.serving.writing.writer import Writer


class Counting:
    """Rows that count down from their `max_tokens`; `held` is set while a step may go on."""

    def __init__(self, capacity: int = 1000) -> None:
        self.capacity, self.lost = capacity, dict[int, Exception]()
        self.prompt_tokens, self.prefixes = 0, Prefixes(0)
        self.rows: dict[int, list[int]] = {}  # row -> slot, tokens left, tokens it takes
        self.left: list[int] = []
        self.steps: list[list[int]] = []  # slots of each step
        self.bad: set[int] = set()  # slots whose rows cannot go on
        self.held = threading.Event()
        self.held.set()
        self.inside = threading.Event()
        self._next = 0

    @property
    def free(self) -> int:
        return self.capacity - sum(taken for *_, taken in self.rows.values())

    def needs(self, prompt: int, sampling: Sampling) -> int:
        asked = sampling.n * (prompt + sampling.max_tokens)
        if asked > self.capacity:
            raise CapacityError("never")
        return asked

    def join(
        self, slot: int, ids: Sequence[int], sampling: Sampling, ends: Collection[int], owner: str | None
    ) -> list[int]:
        taken = self.needs(len(ids), sampling) // sampling.n
        assert taken * sampling.n <= self.free
        numbers = list(range(self._next, self._next + sampling.n))
        self._next += sampling.n
        self.rows |= {number: [slot, sampling.max_tokens, taken] for number in numbers}
        return numbers

    def leave(self, row: int) -> None:
        if self.rows.pop(row, None) is not None:
            self.left.append(row)

    def step(self, only: Collection[int] | None = None) -> dict[int, Written]:
        self.inside.set()
        self.held.wait()
        mine = [row for row in self.rows if only is None or row in only]
        if any(self.rows[row][0] in self.bad for row in mine):
            raise ValueError("a bad row")
        self.steps.append([self.rows[row][0] for row in mine])
        written = {}
        for row in mine:
            self.rows[row][1] -= 1
            over = self.rows[row][1] == 0
            written[row] = Written(Choice(self.rows[row][0]), "length" if over else None)
            if over:
                del self.rows[row]
        return written


def ask(slot: int = 0, tokens: int = 3, n: int = 1, prompt: int = 1) -> Ask:
    return Ask(slot, [1] * prompt, Sampling(max_tokens=tokens, n=n), ())


async def said(stream: Stream) -> list[tuple[int, int]]:
    return [(number, written.token) async for number, written in stream]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def writer_of(counting: Counting, max_rows: int = 8) -> tuple[Writer, ThreadPoolExecutor]:
    thread = ThreadPoolExecutor(1)
    return Writer(lambda: counting, thread, max_rows), thread


async def all_of(writer: Writer, key: str, *asks: Ask) -> list[tuple[int, int]]:
    async with writer.open(key, asks) as stream:
        return await said(stream)


def test_each_request_gets_its_own_answers_in_order() -> None:
    async def main() -> None:
        counting = Counting()
        writer, thread = writer_of(counting)
        found = await asyncio.gather(
            all_of(writer, "a", ask(1, 2), ask(2, 1, n=2)), all_of(writer, "b", ask(3, 4)), all_of(writer, "c", ask(4))
        )
        assert sorted(found[0]) == [(0, 1), (0, 1), (1, 2), (2, 2)]
        assert found[1:] == [[(0, 3)] * 4, [(0, 4)] * 3]
        assert (writer.running, writer.waiting, counting.rows, counting.left) == (0, 0, {}, [])
        assert sorted(counting.steps[0]) == [1, 2, 2, 3, 4]  # all in one step
        assert writer.stats.tokens == 11
        thread.shutdown()

    run(main())


def test_a_row_joins_while_others_are_written_and_nobody_waits_for_the_longest() -> None:
    async def main() -> None:
        counting = Counting()
        writer, thread = writer_of(counting)
        async with writer.open("a", [ask(1, 50)]) as long:
            await anext(long)
            assert await all_of(writer, "b", ask(2, 2)) == [(0, 2)] * 2
            assert long.open == {0}
        thread.shutdown()
        assert [1, 2] in counting.steps
        assert len(counting.steps) < 50

    run(main())


def test_a_key_that_floods_leaves_room_for_the_first_of_another() -> None:
    async def main() -> None:
        counting = Counting()
        writer, thread = writer_of(counting)
        flood = [asyncio.create_task(all_of(writer, "a", ask(1, 6))) for _ in range(30)]
        await asyncio.sleep(0)
        assert len(writer._next()) == 6  # of 8, a quarter is left
        while writer.stats.steps < 2:
            await asyncio.sleep(0)
        assert await all_of(writer, "b", ask(2, 1)) == [(0, 2)]
        assert not any(task.done() for task in flood[6:])
        first = next(step for step in counting.steps if 2 in step)
        assert first.count(1) == 6
        await asyncio.gather(*flood)
        assert max(map(len, counting.steps)) <= 8
        thread.shutdown()

    run(main())


def test_keys_take_turns_at_what_becomes_free() -> None:
    async def main() -> None:
        counting = Counting()
        writer, thread = writer_of(counting, max_rows=4)
        tasks = [asyncio.create_task(all_of(writer, "a", ask(1, 2))) for _ in range(12)]
        tasks += [asyncio.create_task(all_of(writer, "b", ask(2, 2))) for _ in range(3)]
        await asyncio.gather(*tasks)
        together = [step for step in counting.steps if 2 in step]
        assert all(step.count(1) <= 2 for step in together)  # not three of those that came first
        thread.shutdown()

    run(main())


def test_who_needs_more_tokens_than_are_free_waits_and_is_not_overtaken() -> None:
    async def main() -> None:
        counting = Counting(capacity=40)
        writer, thread = writer_of(counting)
        async with writer.open("a", [ask(1, 25)]) as first:
            await anext(first)
            before = writer.stats.steps
            large = asyncio.create_task(all_of(writer, "b", ask(2, 30)))
            await asyncio.sleep(0)
            small = asyncio.create_task(all_of(writer, "c", ask(3, 1)))
            while writer.stats.steps < before + 10:
                await anext(first)
            assert not small.done()
        assert await small == [(0, 3)]
        assert len(await large) == 30
        with pytest.raises(CapacityError, match="never"):
            await all_of(writer, "a", ask(1, 40))
        assert (writer.running, writer.waiting, counting.rows) == (0, 0, {})
        thread.shutdown()

    run(main())


@pytest.mark.parametrize("when", ["queued", "joining", "written", "ended"])
def test_who_leaves_frees_its_rows_at_once_and_once(when: str) -> None:
    async def main() -> None:
        counting = Counting()
        writer, thread = writer_of(counting, max_rows=2)
        if when == "queued":
            blocker = asyncio.create_task(all_of(writer, "b", ask(9, 40, n=2)))
            while not writer.running:
                await asyncio.sleep(0)
        if when == "joining":
            counting.held.clear()
        async with writer.open("a", [ask(1, 4 if when == "ended" else 30, n=2)]) as stream:
            if when == "joining":
                await asyncio.to_thread(counting.inside.wait)
            elif when != "queued":
                for _ in range(8 if when == "ended" else 2):
                    await anext(stream)
        counting.held.set()
        gone = thread.submit(lambda: [row for row, (slot, *_) in counting.rows.items() if slot == 1])
        assert await asyncio.wrap_future(gone) == []  # before anything that the thread is given later
        assert len(counting.left) == {"queued": 0, "joining": 2, "written": 2, "ended": 0}[when]
        if when == "queued":
            await blocker
        assert await all_of(writer, "a", ask(1, 1)) == [(0, 1)]
        assert (writer.running, writer.waiting, writer._streams, counting.rows) == (0, 0, set(), {})
        thread.shutdown()

    run(main())


def test_one_answer_may_end_before_the_others() -> None:
    async def main() -> None:
        counting = Counting()
        writer, thread = writer_of(counting)
        found = []
        async with writer.open("a", [ask(1, 5, n=3)]) as stream:
            async for number, _ in stream:
                found.append(number)
                if number == 1:
                    stream.stop(1)
                    stream.stop(1)
        assert (found.count(0), found.count(1), found.count(2)) == (5, 1, 5)
        assert counting.left == [1]
        assert writer.running == 0
        async with writer.open("a", [ask(1, 5, n=2)]) as stream:
            stream.stop(0)  # before it has begun
            assert {number for number, _ in await said(stream)} == {1}
        assert (writer.running, counting.rows, len(counting.left)) == (0, {}, 2)
        thread.shutdown()

    run(main())


def test_a_row_that_cannot_go_on_stops_no_other() -> None:
    async def main() -> None:
        counting = Counting()
        writer, thread = writer_of(counting)
        counting.bad = {7}
        good, bad = await asyncio.gather(
            all_of(writer, "a", ask(1, 4)), all_of(writer, "b", ask(7, 4)), return_exceptions=True
        )
        assert good == [(0, 1)] * 4
        assert isinstance(bad, ValueError)
        assert (writer.running, counting.rows) == (0, {})
        thread.shutdown()

    run(main())


def test_a_row_that_is_lost_hears_why() -> None:
    class Losing(Counting):
        def step(self, only: Collection[int] | None = None) -> dict[int, Written]:
            written = super().step(only)
            self.lost = {}
            for row in [row for row in self.rows if self.rows[row][0] == 7]:
                self.lost[row] = ArithmeticError("no number")
                del self.rows[row], written[row]
            return written

    async def main() -> None:
        writer, thread = writer_of(Losing())
        good, lost = await asyncio.gather(
            all_of(writer, "a", ask(1, 4)), all_of(writer, "b", ask(7, 4)), return_exceptions=True
        )
        assert (good, str(lost)) == ([(0, 1)] * 4, "no number")
        assert writer.running == 0
        thread.shutdown()

    run(main())


def test_a_writer_that_cannot_be_made_is_asked_again() -> None:
    async def main() -> None:
        thread, tries = ThreadPoolExecutor(1), iter([True, False])

        def make() -> Counting:
            if next(tries):
                raise CapacityError("not yet")
            return Counting()

        writer = Writer(make, thread)
        with pytest.raises(CapacityError, match="not yet"):
            await all_of(writer, "a", ask())
        assert await all_of(writer, "a", ask(2, 1)) == [(0, 2)]
        thread.shutdown()

    run(main())


def test_a_stream_that_fails_tells_its_reader_and_closing_leaves_nobody_waiting() -> None:
    async def main() -> None:
        counting = Counting()
        writer, thread = writer_of(counting)
        async with writer.open("a", [ask(1, 500)]) as stream:
            await anext(stream)
            stream.fail(TimeoutError("late"))
            with pytest.raises(TimeoutError, match="late"):
                await said(stream)
        assert (await asyncio.wrap_future(thread.submit(lambda: dict(counting.rows)))) == {}
        waiting = asyncio.create_task(all_of(writer, "a", ask(1, 900)))
        while not writer.running:
            await asyncio.sleep(0)
        await writer.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        thread.shutdown()

    run(main())


def test_steps_and_batches_take_turns_in_one_thread() -> None:
    async def main() -> None:
        counting, order, thread = Counting(), list[str](), ThreadPoolExecutor(1)
        writer = Writer(lambda: counting, thread)
        writer.on_step = lambda tokens, seconds: order.append("step")

        def compute(rows: list[int]) -> list[int]:
            order.append("batch")
            return rows

        batcher: Batcher[int, int] = Batcher(compute, thread, max_rows=1)
        async with writer.open("a", [ask(1, 400)]) as stream:
            await anext(stream)
            assert await batcher.submit("b", list(range(20))) == list(range(20))
            assert stream.open == {0}
        runs = "".join(word[0] for word in order[: len(order) - order[::-1].index("batch")])
        assert "bbb" not in runs  # a batch may find the next step not sent yet, once
        assert runs.count("s") >= 10
        await batcher.close()
        thread.shutdown()

    run(main())


def test_one_that_comes_after_another_steps_only_while_that_one_has_nothing_to_do() -> None:
    async def main() -> None:
        thread, order = ThreadPoolExecutor(1), list[str]()
        first = Writer(lambda: Counting(), thread)
        second = Writer(lambda: Counting(), thread, after=first)
        first.on_step = lambda tokens, seconds: order.append("first")
        second.on_step = lambda tokens, seconds: order.append("second")
        behind = asyncio.create_task(all_of(second, "copy", ask(2, 5)))
        while len(order) < 2:  # has begun
            await asyncio.sleep(0)
        assert await all_of(first, "a", ask(1, 20)) == [(0, 1)] * 20
        assert await behind == [(0, 2)] * 5
        at = order.index("first")
        assert order[at : at + 20].count("first") >= 19  # one step may have been under way
        assert order.count("second") == 5
        waiting = asyncio.create_task(all_of(second, "copy", ask(2, 900)))
        async with first.open("a", [ask(1, 900)]) as stream:
            await anext(stream)
            await second.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        thread.shutdown()

    run(main())
