"""What a pack is told to do: whom to take, whom to wait for, and that nothing of it outlives a killed pack."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest

from ray_lora.errors import CapacityError
from ray_lora.recipe import LoraSpec, TrainingSpec
from ray_lora.running import coordinator as module
from ray_lora.running.coordinator import Coordinator
from ray_lora.running.progress import Progress
from ray_lora.running.records import Orders
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.training.job import Job, Report


def job(name: str) -> Job:
    return Job(name, "data", TextClassificationSpec(labels=("no", "yes")), LoraSpec(), TrainingSpec())


def evaluated(name: str, step: int, done: bool = False) -> Report:
    return Report(name, step, 10, step / 5, loss=0.5, metrics={"accuracy": 0.5}, saved=True, done=done)


def asynchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))  # type: ignore[arg-type]

    return run


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE_S", 0.05)
    monkeypatch.setattr(module, "_DECIDE_S", 600)
    monkeypatch.setattr(module, "_GATHER_S", 600)  # whoever waits for it in vain never ends


async def started(*names: str, followed: bool = True, expected: int = 0) -> Coordinator:
    """A coordinator whose pack holds these jobs in slots 1, 2, …"""
    made = Coordinator(expected)
    for name in names:
        await made.submit(job(name), {}, followed=followed)
    orders = await made.sync("pack-0", [], {}, len(names))
    assert [joined.name for joined in orders.join] == list(names)
    return made


@asynchronous
async def test_a_followed_job_makes_no_step_until_it_is_asked_for_more() -> None:
    made = await started("a")
    first = asyncio.create_task(made.next_evaluation("a"))
    for _ in range(3):
        assert await made.sync("pack-0", [evaluated("a", 5)] if not first.done() else [], {"a": 1}, 0) == Orders(
            hold=("a",)
        )
    assert (await first)["step"] == 5
    second = asyncio.create_task(made.next_evaluation("a"))
    assert await made.sync("pack-0", [], {"a": 1}, 0) == Orders()
    await made.stop("a")
    assert await made.sync("pack-0", [], {"a": 1}, 0) == Orders(leave=("a",))
    assert "stopped" in (await second)["error"]


@asynchronous
async def test_an_evaluation_that_came_early_is_fetched_before_the_job_goes_on() -> None:
    made = await started("a")
    await made.sync("pack-0", [evaluated("a", 5)], {"a": 1}, 0)
    assert (await made.next_evaluation("a"))["step"] == 5
    assert (await made.sync("pack-0", [], {"a": 1}, 0)).hold == ("a",)


@asynchronous
async def test_jobs_that_come_one_after_the_other_begin_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GATHER_S", 2.0)
    made = Coordinator(expected=3)

    async def come() -> None:
        for name in ("a", "b", "c"):
            await asyncio.sleep(0.8)  # the last one comes later than one wait after the pack asked
            await made.submit(job(name), {})

    coming = asyncio.create_task(come())
    while not (orders := await made.sync("pack-0", [], {}, 3)).join:
        pass
    await coming
    assert [joined.name for joined in orders.join] == ["a", "b", "c"]


@asynchronous
async def test_a_pack_begins_when_the_next_job_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GATHER_S", 0.2)
    made = Coordinator(expected=3)
    await made.submit(job("a"), {})
    assert [joined.name for joined in (await made.sync("pack-0", [], {}, 3)).join] == ["a"]


@asynchronous
async def test_nobody_waits_for_jobs_beyond_those_that_run_at_once() -> None:
    made = Coordinator(expected=3, at_once=1)
    await made.submit(job("a"), {})
    assert [joined.name for joined in (await made.sync("pack-0", [], {}, 3)).join] == ["a"]


@asynchronous
async def test_waits_in_vain_become_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GATHER_S", 0.4)
    monkeypatch.setattr(module, "_LEAST_S", 0.05)
    made = Coordinator(expected=9)  # a limit of the searcher's own lets one run at a time
    for name in "abc":
        await made.submit(job(name), {})
        await made.sync("pack-0", [], {}, 2)
        await made.sync("pack-0", [evaluated(name, 10, done=True)], {}, 2)
    assert made._patience <= 0.1
    await made.submit(job("d"), {})
    await made.submit(job("e"), {})
    await made.sync("pack-0", [], {}, 2)
    assert made._patience == 0.4  # jobs come again


@asynchronous
async def test_jobs_that_nobody_follows_are_never_on_hold() -> None:
    made = await started("a", followed=False)
    assert await made.sync("pack-0", [evaluated("a", 5)], {"a": 1}, 0) == Orders()


@asynchronous
async def test_a_pack_waits_for_members_on_hold_but_not_for_ever() -> None:
    made = await started("a", "b")
    held = {"a": 1, "b": 2}
    syncing = asyncio.create_task(made.sync("pack-0", [evaluated("a", 5), evaluated("b", 5)], held, 0))
    for name in held:
        await made.next_evaluation(name)
    waiting: list[asyncio.Task[Any]] = []
    for name in held:  # the second is asked for while the pack waits
        waiting.append(asyncio.create_task(made.next_evaluation(name)))
        await asyncio.sleep(0.01)
    assert await syncing == Orders()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DECIDE_S", 0.2)
        begun = time.monotonic()
        assert await made.sync("pack-0", [evaluated("b", 10)], held, 0) == Orders(hold=("b",))
        assert time.monotonic() - begun >= 0.2
    for task in waiting:
        task.cancel()


@asynchronous
async def test_jobs_that_follow_on_ended_ones_join_together() -> None:
    made = await started("a", "b", expected=5)
    reports = [evaluated("a", 10, done=True), evaluated("b", 10, done=True)]
    syncing = asyncio.create_task(made.sync("pack-0", reports, {}, 2))
    for name in ("c", "d"):
        await asyncio.sleep(0.02)
        await made.submit(job(name), {}, followed=True)
    assert [joined.name for joined in (await syncing).join] == ["c", "d"]


@asynchronous
async def test_a_slot_is_not_kept_free_for_jobs_that_nobody_expects() -> None:
    made = await started("a", "b", expected=2)
    assert await made.sync("pack-0", [evaluated("a", 10, done=True)], {"b": 2}, 1) == Orders()


@asynchronous
async def test_a_killed_pack_is_given_its_jobs_again_and_packs_share_all_jobs_evenly() -> None:
    made = await started("a", "b")
    assert [joined.name for joined in (await made.sync("pack-0", [], {}, 2)).join] == ["a", "b"]
    await made.sync("pack-1", [], {}, 4)
    for name in "cdef":
        await made.submit(job(name), {})
    assert [joined.name for joined in (await made.sync("pack-1", [], {}, 4)).join] == ["c", "d", "e"]
    assert [joined.name for joined in (await made.sync("pack-0", [], {"a": 1, "b": 2}, 2)).join] == ["f"]
    with pytest.raises(CapacityError, match="already in this search"):
        await made.submit(job("c"), {})


@asynchronous
async def test_a_pack_takes_all_that_waits_when_the_other_is_full() -> None:
    made = await started("a", "b")
    for name in "cd":
        await made.submit(job(name), {})
    assert not (await made.sync("pack-0", [], {"a": 1, "b": 2}, 0)).join
    assert [joined.name for joined in (await made.sync("pack-1", [], {}, 2)).join] == ["c", "d"]


@asynchronous
async def test_a_failed_job_says_why_and_a_closed_pack_ends() -> None:
    made = await started("a")
    await made.sync("pack-0", [Report("a", 2, 10, 0.1, error="diverged at step 2")], {}, 1)
    assert await made.next_evaluation("a") == {"error": "diverged at step 2"}
    await made.close()
    assert (await made.sync("pack-0", [], {}, 1)).close


@asynchronous
async def test_who_closes_ends_what_is_followed_and_waits_for_the_rest() -> None:
    made = await started("left", "waits")
    await made.submit(job("alone"), {})  # nobody decides on it
    held = {"left": 1, "waits": 2}
    syncing = asyncio.create_task(made.sync("pack-0", [evaluated("left", 5)], held, 0))
    await asyncio.sleep(0.01)
    await made.close()
    orders = await syncing  # two are to leave first, and write what they found
    assert orders.leave == ("left", "waits")
    assert [joined.name for joined in orders.join] == ["alone"]
    assert not orders.close
    assert not (await made.sync("pack-0", [], {"alone": 1}, 1)).close
    assert (await made.sync("pack-0", [evaluated("alone", 10, done=True)], {}, 2)).close
    assert {name: record.status for name, record in made.records.items()} == {
        "left": "stopped",
        "waits": "stopped",
        "alone": "finished",
    }


@asynchronous
async def test_what_workers_found_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    made = await started("a", "b")
    for name in ("a", "b", "a"):  # of the same rows; and again after a kill
        await made.note(name, ["train: 3 of 9 rows are cut"])
    records, _, _ = await made.snapshot(0)
    watched = Progress("search", "accuracy", quiet=True)
    for _ in range(2):
        watched.show(records)
    assert caplog.messages == ["train: 3 of 9 rows are cut"]


@asynchronous
async def test_a_halted_job_ends_now_or_when_it_comes_until_it_is_released() -> None:
    made = await started("a", "b")
    asked = asyncio.create_task(made.next_evaluation("a"))
    await asyncio.sleep(0)
    await made.halt(["a", "c"])
    assert await asked == {"halted": True}
    assert (await made.sync("pack-0", [], {"a": 1, "b": 2}, 0)).leave == ("a",)
    await made.submit(job("c"), {}, followed=True)
    assert await made.next_evaluation("c") == {"halted": True}
    assert (await made.sync("pack-0", [], {"b": 2}, 1)).join == ()
    await made.release(["c"])
    await made.submit(job("c"), {}, followed=True)
    assert [joined.name for joined in (await made.sync("pack-0", [], {"b": 2}, 1)).join] == ["c"]


@asynchronous
async def test_what_a_halted_job_reported_is_told_before_its_end() -> None:
    made = await started("a")
    await made.sync("pack-0", [evaluated("a", 5)], {"a": 1}, 0)
    await made.halt(None)
    assert (await made.next_evaluation("a"))["step"] == 5
    assert await made.next_evaluation("a") == {"halted": True}
    await made.submit(job("b"), {}, followed=True)
    assert made.records["b"].status == "stopped"


@asynchronous
async def test_an_announced_job_is_trained_before_its_trial_comes() -> None:
    made = Coordinator(expected=2)
    await made.announce([(job("a"), {"lora.r": 8}), (job("b"), {})])
    orders = await made.sync("pack-0", [], {}, 2)
    assert [joined.name for joined in orders.join] == ["a", "b"]
    assert (await made.sync("pack-0", [evaluated("a", 5), evaluated("b", 5)], {"a": 1, "b": 2}, 0)).hold == ("a", "b")
    assert await made.is_announced("a")
    await made.submit(job("a"), {"lora.r": 8}, followed=True)
    assert made.records["a"].config == {"lora.r": 8}
    assert not await made.is_announced("a")
    assert (await made.next_evaluation("a"))["step"] == 5  # what it reported meanwhile was kept
    with pytest.raises(CapacityError, match="already in this search"):  # the same trial twice
        await made.submit(job("a"), {}, followed=True)


@asynchronous
async def test_an_announced_job_that_came_to_its_end_is_not_trained_again() -> None:
    made = Coordinator()
    await made.announce([(job("a"), {}), (job("b"), {})])
    await made.sync("pack-0", [], {}, 2)
    await made.sync("pack-0", [evaluated("a", 10, done=True), Report("b", 3, 10, 0.6, error="diverged")], {}, 2)
    for name in ("a", "b"):
        await made.submit(job(name), {}, followed=True)
    assert (await made.next_evaluation("a"))["done"]
    assert await made.next_evaluation("b") == {"error": "diverged"}
    assert (await made.sync("pack-0", [], {}, 2)).join == ()


@asynchronous
async def test_a_trial_of_another_configuration_than_was_announced_is_refused() -> None:
    made = Coordinator()
    await made.announce([(job("a"), {})])
    other = replace(job("a"), training=TrainingSpec(learning_rate=0.5))
    with pytest.raises(CapacityError):
        await made.submit(other, {}, followed=True)
    await made.stop("a")  # it never came: Tune has given its trial up
    await made.submit(other, {}, followed=True)
    orders = await made.sync("pack-0", [], {}, 1)
    assert [joined.training.learning_rate for joined in orders.join] == [0.5]


@asynchronous
async def test_who_is_known_is_not_announced_and_who_is_halted_not_trained() -> None:
    made = await started("a")
    await made.halt(["b"])
    await made.announce([(job("a"), {"lora.r": 4}), (job("b"), {})])
    assert made.records["a"].config == {}
    assert not made.records["a"].announced
    assert (await made.sync("pack-0", [], {"a": 1}, 1)).join == ()
    await made.submit(job("b"), {}, followed=True)
    assert await made.next_evaluation("b") == {"halted": True}


@asynchronous
async def test_a_pack_waits_for_those_whose_trials_are_still_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DECIDE_S", 0.5)
    made = Coordinator()
    await made.announce([(job("a"), {}), (job("b"), {})])
    await made.sync("pack-0", [], {}, 2)
    reports = [evaluated("a", 5), evaluated("b", 5)]

    async def next_step() -> Orders:
        while (orders := await made.sync("pack-0", reports, {"a": 1, "b": 2}, 0)).hold == ("a", "b"):
            reports.clear()
        return orders

    step = asyncio.create_task(next_step())

    async def decide(name: str) -> None:
        await made.submit(job(name), {}, followed=True)
        for _ in range(2):
            asked = asyncio.create_task(made.next_evaluation(name))
            await asyncio.sleep(0.01)
        assert not asked.done()

    await decide("a")
    await asyncio.sleep(0.7)
    assert not step.done()  # else a would be a step ahead of b for good
    await decide("b")
    assert await step == Orders()


@asynchronous
async def test_who_waits_for_a_pack_hears_of_it_or_that_there_is_nothing_to_do() -> None:
    made = Coordinator()
    ready = asyncio.create_task(made.ready())
    await asyncio.sleep(0.01)
    assert not ready.done()
    await made.sync("pack-0", [], {}, 1)
    assert await ready
    failed = Coordinator()
    await failed.fail("no memory")
    assert not await failed.ready()
    ended = Coordinator()  # a search that is given up before its first pack is there
    await ended.announce([(job("a"), {})])
    ready = asyncio.create_task(ended.ready())
    await ended.close()
    assert not await ready
    closed = Coordinator()  # no more jobs will come, and one waits
    await closed.submit(job("a"), {})
    await closed.close()
    await closed.sync("pack-0", [], {}, 1)
    assert await closed.ready()
