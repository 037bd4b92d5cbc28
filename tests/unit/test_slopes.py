"""What a soak calls flat, growing and unclear."""

from __future__ import annotations

import random

import pytest

from benchmarks.slopes import fit
from benchmarks.soak import judge

MINUTES = [60.0 * minute for minute in range(45)]


def test_a_steady_growth_is_found_through_noise_and_peaks() -> None:
    dice = random.Random(0)
    values = [400 + 30 * second / 3600 + dice.uniform(-1, 1) for second in MINUTES]
    values[7] += 500
    values[20] += 500
    slope = fit(MINUTES, values, allowed=8)
    assert slope.an_hour == pytest.approx(30, abs=3)
    assert slope.low < slope.an_hour < slope.high
    assert slope.says == "grows"


def test_noise_and_what_sinks_are_flat() -> None:
    dice = random.Random(0)
    assert fit(MINUTES, [400 + dice.uniform(-3, 3) for _ in MINUTES], allowed=8).says == "flat"
    assert fit(MINUTES, [400 - second for second in MINUTES], allowed=8).says == "flat"
    constant = fit(MINUTES, [64] * len(MINUTES), allowed=1)
    assert (constant.an_hour, constant.low, constant.high, constant.says) == (0, 0, 0, "flat")


def test_a_few_wild_points_are_not_called_flat() -> None:
    assert fit([0, 60, 120], [10, 300, 20], allowed=1).says == "unclear"


def test_a_slope_needs_three_points() -> None:
    with pytest.raises(ValueError, match="2 times and 2 values; a slope needs three"):
        fit([0, 60], [1, 2], allowed=1)


def look(second: float, replica: float, pid: int) -> dict[str, object]:
    one = {"part": "replica of Endpoint", "pid": pid, "rss_mb": 600, "uss_mb": replica, "pss_mb": 450, "handles": 70}
    return {"second": second, "held": [{**one, "threads": 40, "processor_s": 1.0}]}


def test_a_process_is_judged_after_the_warm_up_by_what_is_its_own() -> None:
    warming = [look(second, 100 + second, pid=1) for second in MINUTES[:10]]
    steady = [look(second, 700, pid=1) for second in MINUTES[10:]]
    assert judge([*warming, *steady], warm_s=600)["replica of Endpoint"]["says"] == "flat"
    growing = [look(second, 700 + second / 20, pid=1) for second in MINUTES[10:]]
    told = judge([*warming, *growing], warm_s=600)["replica of Endpoint"]
    assert (told["says"], told["rss_mb"]["says"], told["handles"]["says"]) == ("grows", "flat", "flat")


def test_a_process_that_was_replaced_is_not_called_flat() -> None:
    looks = [look(second, 700, pid=1 if second < 1200 else 2) for second in MINUTES]
    told = judge(looks, warm_s=0)
    assert {one["says"] for one in told.values()} == {"was not there throughout"}
    assert len(told) == 2
