"""What scores over rows say, of scores that are given: nothing trains."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_lora.errors import RecipeError
from ray_lora.recipe import Recipe
from ray_lora.running.learning_curve import _draw, _job, _sizes, interval, summarise


def test_a_mean_has_students_interval() -> None:
    mean, low, high = interval([0.80, 0.82, 0.84])
    assert mean == pytest.approx(0.82)
    assert low is not None
    assert high is not None
    assert high - mean == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom, 97.5 %
    assert mean - low == pytest.approx(high - mean)
    assert interval([0.5]) == (0.5, None, None)


def test_rows_that_still_gain_are_said_to_pay() -> None:
    curve = summarise({64: [0.70, 0.71, 0.72], 128: [0.80, 0.812, 0.82]}, "accuracy", "max")
    assert curve.enough is None
    assert "64 to 128 rows: accuracy better by 0.1007" in curve.verdict
    assert "still pay" in curve.verdict
    gain = curve.points[1].gain
    assert gain is not None
    assert gain[0] == pytest.approx(0.10067, abs=1e-5)  # draw by draw, so its interval is narrower than the scores'
    assert gain[1] is not None
    assert 0.09 < gain[1] < gain[0]


def test_where_nothing_more_is_gained_the_least_rows_are_named() -> None:
    scores = {32: [0.5, 0.51, 0.52], 64: [0.80, 0.82, 0.81], 128: [0.81, 0.81, 0.82], 256: [0.81, 0.82, 0.815]}
    curve = summarise(scores, "accuracy", "max")
    assert curve.enough == 64
    assert "from 64 rows on nothing is gained" in curve.verdict


def test_an_error_that_falls_is_a_gain() -> None:
    curve = summarise({64: [0.30, 0.31, 0.32], 128: [0.20, 0.205, 0.21]}, "wer", "min")
    assert curve.enough is None
    assert "better by 0.1050" in curve.verdict


def test_one_draw_and_one_size_say_what_they_cannot_say() -> None:
    assert "one draw says nothing of chance" in summarise({64: [0.7], 128: [0.8]}, "accuracy", "max").verdict
    assert "give several sizes" in summarise({64: [0.7, 0.8]}, "accuracy", "max").verdict


def test_sizes_are_halves_of_all_rows_and_none_too_small() -> None:
    assert _sizes(1024, None) == [32, 64, 128, 256, 512, 1024]
    assert _sizes(20, None) == [10, 20]
    assert _sizes(5, None) == [5]
    assert _sizes(100, [50, 10, 50]) == [10, 50]
    for wrong in ([], [0], [101], [-1, 5]):
        with pytest.raises(RecipeError, match="from 1 to the 100 training rows"):
            _sizes(100, wrong)


def test_smaller_sets_are_inside_larger_ones_and_draws_differ(tmp_path: Path) -> None:
    table = pa.table({"text": [str(number) for number in range(40)]})
    drawn = _draw(table, [10, 40], 2, tmp_path, seed=3)
    held = {key: pq.read_table(path).column("text").to_pylist() for key, path in drawn.items()}
    for draw in (0, 1):
        assert held[40, draw][:10] == held[10, draw]
        assert sorted(held[40, draw], key=int) == table.column("text").to_pylist()
    assert held[10, 0] != held[10, 1]
    again = _draw(table, [10, 40], 2, tmp_path, seed=3)
    assert again == drawn
    other = _draw(table.slice(0, 39), [10], 1, tmp_path, seed=3)  # other rows are other files
    assert set(other.values()).isdisjoint(drawn.values())


def test_few_rows_train_as_many_steps_as_are_worth_a_score() -> None:
    recipe = Recipe(name="a").override({"training.num_train_epochs": 2, "training.per_device_train_batch_size": 16})
    steps = {size: _job(recipe, size, 0, Path("a.parquet"), 1024).training.max_steps for size in (8, 512, 1024)}
    assert steps == {8: 100, 512: 100, 1024: 128}
    assert _job(recipe, 8, 0, Path("a.parquet"), 32).training.max_steps == 4  # all rows take no more
    told = recipe.override({"training.max_steps": 7})
    assert _job(told, 8, 1, Path("a.parquet"), 1024).training.max_steps == 7
    assert _job(told, 8, 1, Path("a.parquet"), 1024).training.seed == recipe.training.seed + 1
