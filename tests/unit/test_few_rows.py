"""The recipe for few rows, and the benchmark that measures it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import few_shot
from benchmarks.few_shot import RECIPE, Place, known, lora, settings_of, told
from ray_lora.bases.load import load_base
from ray_lora.recipe import BaseSpec, Recipe
from tests.conftest import rated


@pytest.fixture
def place(tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Rows of two labels, of which the last word says which, and the recipe on a base that knows nothing."""
    (tmp_path / "data/moods").mkdir(parents=True)
    for seed, name in enumerate(("train-1024", "test")):
        pq.write_table(pa.Table.from_pylist(rated(120, seed)), tmp_path / f"data/moods/{name}.parquet")
    monkeypatch.chdir(tmp_path)
    return Place(load_base(BaseSpec(model=str(tiny_bert_folder), dtype="float32")), Recipe.load(RECIPE))


def test_each_draw_has_so_many_rows_of_every_label_and_is_the_same_again(place: Place) -> None:
    rows = place.drawn("moods", 8, 0)
    assert [row["label"] for row in rows] == ["negative"] * 8 + ["positive"] * 8
    assert len({row["text"] for row in rows}) == 16
    assert rows == place.drawn("moods", 8, 0) != place.drawn("moods", 8, 1)


def test_the_recipe_learns_from_few_rows_without_validation_rows(place: Place) -> None:
    """Its draws beside each other in one pack; at a rate for a base that knows nothing."""
    assert place.recipe.data.validation is None
    place.recipe = place.recipe.override({"training.learning_rate": 1e-2})
    found = lora(place, "moods", 16, range(2))
    assert min(found) > 0.8


def test_figures_say_how_far_one_side_lies_below_the_other_beyond_chance() -> None:
    alike = {"lora": [0.5, 0.7, 0.6], "head_only": [0.6, 0.6, 0.63]}
    assert told(alike) == {"lora": 0.6, "head_only": 0.61, "below": 0.0}
    lower = {"lora": [0.5, 0.6, 0.7], "head_only": [0.6, 0.7, 0.83]}
    half = 4.302653 * math.sqrt(3) / 100 / math.sqrt(3)  # Student's t of two degrees; gaps 0.10, 0.10, 0.13
    assert told(lower)["below"] == pytest.approx(0.11 - half, abs=1e-4)
    assert told({"lora": [0.5], "head_only": [0.9]}) == {"lora": 0.5, "head_only": 0.9}


def test_a_killed_run_goes_on_with_what_is_of_its_own_settings(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_shot, "RESULTS", tmp_path)
    accuracy: Any = {"tweets": {"8": {"lora": [0.7], "head_only": [0.6]}}}
    told = {"settings": {"lora": {"rate": 1}, "head_only": {}}, "accuracy": accuracy}
    (tmp_path / "few-shot.json").write_text(json.dumps(told))
    assert known("few-shot", {"lora": {"rate": 1}, "head_only": {}}) == accuracy
    assert known("few-shot", {"lora": {"rate": 2}, "head_only": {}}) == {"tweets": {"8": {"head_only": [0.6]}}}
    assert known("none", told["settings"]) == {}
    changed = settings_of(place.recipe.override({"training.learning_rate": 1e-2}))
    assert {side for side, mine in settings_of(place.recipe).items() if changed[side] != mine} == {
        "lora",
        "lora_fitted",
    }
