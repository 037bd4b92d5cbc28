"""A task of boxes on a builder's base goes the way of any recipe: trained on a cluster, stored, scored, asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import AdapterError, BaseModelError, DataError, RecipeError
from ray_lora.inference.stored import evaluate_ref, predict_ref
from ray_lora.recipe import Recipe
from ray_lora.running.plan import plan_recipe
from ray_lora.running.trainer import train_recipe
from ray_lora.store import open_store
from tests.boxes.rows import BASE, TASK, picture, rows

pytestmark = pytest.mark.usefixtures("cluster")


def written(file: Path, given: Sequence[dict[str, Any]]) -> str:
    pa.parquet.write_table(pa.Table.from_pylist(list(given)), file)
    return str(file)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The cluster was started before anything was allowed."""
    monkeypatch.setenv("RAY_LORA_ALLOW", "tests.boxes")
    return Recipe.parse(
        {
            "name": "things",
            "base": {"model": BASE, "dtype": "float32"},
            "task": {"type": TASK},
            "data": {
                "train": written(tmp_path / "train.parquet", rows(60)),
                "validation": written(tmp_path / "validation.parquet", rows(12, seed=60)),
            },
            "lora": {"r": 4, "target_modules": ["stem", "middle", "last"]},
            "training": {"max_steps": 120, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "eval_steps": 60},
            "tracking": {"uri": None},
            "store": str(tmp_path / "store"),
            "output_dir": str(tmp_path / "runs"),
        }
    )


def test_it_is_trained_stored_scored_and_asked(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_recipe(recipe)["task"] == {"type": TASK, "threshold": 0.5}
    answer = train_recipe(recipe, quiet=True)
    assert answer["ref"] == "things@1"
    assert answer["metrics"]["mean_best_iou"] > 0.5
    card = Adapter.load(Path(answer["adapter"])).card
    assert (card.task, card.base, card.architecture) == (recipe.task, BASE, "Finder")
    assert [path.name for path in (tmp_path / "runs/things").glob("jobs/*/figures/*")] == ["boxes.png"]
    # in the dtype that this machine multiplies fastest; it was trained in float32
    scored = evaluate_ref("things", str(recipe.data.validation), recipe.store, base=BASE)
    assert scored["metrics"] == {"mean_best_iou": pytest.approx(answer["metrics"]["mean_best_iou"], abs=0.05)}
    (tmp_path / "asked.png").write_bytes(rows(1)[0]["image"])
    asked: list[Any] = [str(tmp_path / "asked.png"), {"image": rows(1)[0]["image"]}]
    found = predict_ref("things", asked, recipe.store, {"threshold": 0.3}, base=BASE)["predictions"]
    assert found[0] == found[1]
    assert found[0]
    assert set(found[0][0]) == {"score", "box"}
    with pytest.raises(BaseModelError, match=rf"names the builder '{BASE}'.*give --base {BASE}"):
        predict_ref("things", asked, recipe.store)
    monkeypatch.setenv("RAY_LORA_ALLOW", "")
    with pytest.raises(AdapterError, match=rf"'{TASK}' is not allowed; allowed are no modules"):
        predict_ref("things", asked, recipe.store, base=BASE)
    assert open_store(recipe.store).list() == []


def test_wrong_rows_are_named_before_anything_trains(recipe: Recipe, tmp_path: Path) -> None:
    wrong = rows(6)
    wrong[1]["boxes"] = [[30.0, 1.0, 40.0, 4.0]]
    wrong[4] = {"image": picture(4)[:60], "boxes": []}
    file = written(tmp_path / "wrong.parquet", wrong)
    with pytest.raises(DataError) as caught:
        train_recipe(recipe.override({"data.validation": file}), quiet=True)
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        f"{file}, row 2: box [30.0, 1.0, 40.0, 4.0] is no [x, y, width, height] inside a picture of"
    )
    assert second.startswith(f"{file}, row 5: image is no picture file")
    assert not (tmp_path / "runs/things/jobs").exists()


def test_neither_base_nor_task_run_unless_allowed(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    told = recipe.model_dump()
    monkeypatch.setenv("RAY_LORA_ALLOW", "tests.boxes.base")
    with pytest.raises(RecipeError, match=rf"task\.type: '{TASK}' is not allowed"):
        Recipe.parse(told)
    monkeypatch.setenv("RAY_LORA_ALLOW", "tests.boxes.task")
    with pytest.raises(BaseModelError, match=rf"base '{BASE}': '{BASE}' is not allowed"):
        train_recipe(Recipe.parse(told), quiet=True)
