"""A recipe becomes a smaller base, on which other recipes train together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ray_lora.adapters.adapter import Adapter
from ray_lora.cli import main
from ray_lora.recipe import Recipe
from ray_lora.running.trainer import LoraTrainer
from tests.ray.rows import tiny_recipe

pytestmark = pytest.mark.usefixtures("cluster")


def test_a_recipe_is_pruned_and_others_train_on_what_is_left(
    tiny_bert_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, training__max_steps=4, scaling__packs=1)
    file, small = tmp_path / "recipe.yaml", tmp_path / "small"
    file.write_text(yaml.safe_dump(json.loads(recipe.model_dump_json(exclude_unset=True))))
    asked = ["prune", str(file), "training.max_steps=5", "--keep", "0.5", "--output", str(small)]
    assert main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["ref"] == f"{recipe.name}@1"
    assert told["share"] <= 0.5
    assert main(asked) == 2  # before anything is trained
    assert "exists and is not empty" in capsys.readouterr().err
    on_it = recipe.override({"base.model": str(small)})
    both: list[Recipe] = [on_it.override({"name": name, "lora.r": rank}) for name, rank in (("a", 2), ("b", 4))]
    results = LoraTrainer(both, quiet=True).fit()
    assert isinstance(results, list)
    for result in results:
        assert result.error is None
        assert result.checkpoint is not None
        card = Adapter.load(Path(result.checkpoint.path)).card
        assert card.base_fingerprint == told["fingerprint"] != told["origin_fingerprint"]
