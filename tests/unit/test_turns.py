"""Evaluations of one moment, in an order in which ASHA keeps exactly the better ones."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from ray.tune.schedulers import ASHAScheduler

from ray_lora.running import turns as module
from ray_lora.running.coordinator import Coordinator
from ray_lora.running.turns import Turns, in_turn
from ray_lora.search.stopping import FACTOR, tell
from ray_lora.training.job import Report
from tests.unit.test_coordinator import asynchronous, job


def kept(order: list[str], scores: dict[str, float], factor: float) -> list[str]:
    """Who goes on by Tune's ASHA alone, told in this order."""
    asha = ASHAScheduler(
        time_attr="eighths", metric="score", mode="max", max_t=8, grace_period=1, reduction_factor=factor
    )
    return [name for name in order if tell(asha, name, {"eighths": 1, "score": scores[name]}) == "CONTINUE"]


@pytest.mark.parametrize("factor", [1.5, FACTOR, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 3, 5, 8, 16, 31])
def test_exactly_the_better_share_goes_on(factor: float, count: int) -> None:
    draw = random.Random(count)
    scores = {f"t{number}": draw.random() for number in range(count)}
    ranked = sorted(scores, key=lambda name: -scores[name])
    order = in_turn(scores, "max", factor)
    assert sorted(order) == sorted(scores)
    assert sorted(kept(order, scores, factor)) == sorted(ranked[: math.ceil(count / factor)])
    costs = {name: -score for name, score in scores.items()}
    assert in_turn(costs, "min", factor) == order


def test_in_another_order_a_worse_one_goes_on() -> None:
    scores = {"worst": 0.1, "best": 0.9, "good": 0.8, "bad": 0.2}
    assert kept(list(scores), scores, 2) == ["worst", "best", "good"]  # the first that comes, whatever it scored
    assert kept(["best", "good", "bad", "worst"], scores, 2) == ["best"]  # and after the best nobody
    assert sorted(kept(in_turn(scores, "max", 2), scores, 2)) == ["best", "good"]


def test_what_is_no_number_is_the_worst() -> None:
    assert in_turn({"a": math.nan, "b": 0.5}, "max", 2) == ["b", "a"]
    assert in_turn({"a": math.nan, "b": 0.5}, "min", 2) == ["b", "a"]
    assert in_turn({"a": 0.5}, "max", 2) == ["a"]


# ---------------------------------------------------------------- the coordinator

SCORES = {"a": 0.1, "b": 0.9, "c": 0.8, "d": 0.2}


async def at_a_rung(eighths: int = 1, metric: str = "accuracy") -> Coordinator:
    """Four jobs that were evaluated in one step of their pack."""
    made = Coordinator(turns=Turns(metric, "max", 2))
    for name in SCORES:
        await made.submit(job(name), {}, followed=True)
    await made.sync("pack-0", [], {}, len(SCORES))
    reports = [
        Report(name, 3, 24, 0.1, loss=score, metrics={"accuracy": score}, eighths=eighths, rows=64)
        for name, score in SCORES.items()
    ]
    await made.sync("pack-0", reports, {name: slot for slot, name in enumerate(SCORES, 1)}, 0)
    return made


async def settled(waiting: dict[str, asyncio.Task[dict[str, float]]]) -> list[str]:
    """Who has its evaluation, once everybody who could has taken a turn."""
    for _ in range(100):
        await asyncio.sleep(0)
    return sorted(name for name, task in waiting.items() if task.done())


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
@asynchronous
async def test_one_is_told_when_the_one_before_was_heard_of_or_has_gone(metric: str) -> None:
    made = await at_a_rung(metric=metric)
    waiting = {name: asyncio.create_task(made.next_evaluation(name)) for name in SCORES}
    assert await settled(waiting) == ["c"]  # the worse of those that are to go on
    await made.heard("c")
    assert await settled(waiting) == ["c", "d"]
    await made.stop("d")
    assert await settled(waiting) == ["b", "c", "d"]
    await made.heard("b")
    assert await settled(waiting) == ["a", "b", "c", "d"]
    assert {name: (await task)["accuracy"] for name, task in waiting.items()} == SCORES


@asynchronous
async def test_the_end_of_trials_is_told_in_any_order() -> None:
    made = await at_a_rung(eighths=8)
    waiting = {name: asyncio.create_task(made.next_evaluation(name)) for name in SCORES}
    assert await settled(waiting) == sorted(SCORES)


@asynchronous
async def test_where_nobody_hears_nobody_waits_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEARD_S", 0.05)
    made = await at_a_rung()
    told = await asyncio.gather(*(made.next_evaluation(name) for name in SCORES))
    assert sorted(one["accuracy"] for one in told) == sorted(SCORES.values())
    assert made._queue.turns is None
