"""A learning curve on a real cluster: what `ray-lora curve` runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.running.learning_curve import learning_curve
from tests.ray.rows import tiny_recipe

pytestmark = pytest.mark.usefixtures("cluster")


def test_scores_are_of_adapters_of_so_many_rows_and_the_same_command_finds_them_again(
    tiny_bert_folder: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, training__max_steps=24, scaling__packs=1)
    found = learning_curve(recipe, [8, 96], draws=2, quiet=True)
    few, all_rows = found["points"]
    assert (few["rows"], all_rows["rows"]) == (8, 96)
    assert all(len(point["scores"]) == 2 for point in found["points"])
    assert few["scores"][0] != few["scores"][1] or all_rows["scores"][0] != all_rows["scores"][1]  # draws differ
    folder = tmp_path / "runs" / "tiny-curve" / "runs"
    for point in found["points"]:
        for draw, score in enumerate(point["scores"]):
            (adapter,) = folder.glob(f"*/jobs/tiny-{point['rows']}-{draw}/adapter")
            card = Adapter.load(adapter).card
            assert card.metrics["accuracy"] == score
            assert card.recipe is not None
            assert card.recipe["data"]["train.rows"] == str(point["rows"])  # type: ignore[call-overload,index]
            assert card.recipe["data"]["validation.rows"] == "40"  # type: ignore[call-overload,index]
    kept, picture = map(Path, found["files"])
    assert json.loads(kept.read_text()) == json.loads(json.dumps(found))
    assert picture.stat().st_size > 5000
    assert learning_curve(recipe, [8, 96], draws=2, quiet=True) == found
