"""A learning curve on a real cluster: what `ray-lora curve` runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_lora.running.learning_curve import learning_curve
from tests.ray.rows import tiny_recipe

pytestmark = pytest.mark.usefixtures("cluster")


def test_scores_grow_with_rows_and_the_same_command_finds_them_again(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, training__max_steps=24)
    found = learning_curve(recipe, [8, 96], draws=2, quiet=True)
    few, all_rows = found["points"]
    assert (few["rows"], all_rows["rows"]) == (8, 96)
    assert all(len(point["scores"]) == 2 for point in found["points"])
    assert few["scores"][0] != few["scores"][1] or all_rows["scores"][0] != all_rows["scores"][1]  # draws differ
    assert all_rows["mean"] > 0.9 > few["mean"]
    kept, picture = map(Path, found["files"])
    assert json.loads(kept.read_text()) == json.loads(json.dumps(found))
    assert picture.stat().st_size > 5000
    assert learning_curve(recipe, [8, 96], draws=2, quiet=True) == found
