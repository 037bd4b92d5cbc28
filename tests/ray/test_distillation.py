"""A teacher of the store: its logits are computed once, for a training, the next one and all trials of a search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.train import Result

from benchmarks import tasks
from pipelines import distill
from pipelines.lines import HEADERS, cells
from ray_lora.adapters.adapter import Adapter
from ray_lora.data.row_cache import RowCache
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.stored import predict_ref
from ray_lora.recipe import Recipe
from ray_lora.running import distilling
from ray_lora.running.trainer import LoraTrainer, train_recipe
from ray_lora.search.tuner import LoraTuner
from ray_lora.store import open_store
from tests.ray.rows import history, tiny_recipe

pytestmark = pytest.mark.usefixtures("cluster")


def flipped(path: Path) -> Path:
    """The rows with the other label each."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    other = {"no": "yes", "yes": "no"}
    found = path.with_name(f"flipped-{path.name}")
    found.write_text("".join(json.dumps(row | {"label": other[row["label"]]}) + "\n" for row in rows))
    return found


@pytest.fixture(scope="module")
def liars(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a teacher that was trained on the other label of each row, under labels in another order."""
    folder = tmp_path_factory.mktemp("liars")
    recipe = tiny_recipe(tiny_bert_folder, folder, training__num_train_epochs=6)
    wrong = {f"data.{split}": str(flipped(folder / f"{split}.jsonl")) for split in ("train", "validation")}
    train_recipe(recipe.override({"name": "liar", "task.labels": ["yes", "no"], **wrong}), quiet=True)
    return Path(recipe.store)


@pytest.fixture
def taught(liars: Path, tiny_bert_folder: Path, tmp_path: Path) -> Recipe:
    """A student of the teacher, in a store of its own."""
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, training__num_train_epochs=6)
    shutil.copytree(liars, recipe.store)
    told = {"distillation.teacher": "liar", "distillation.weight": 1, "distillation.temperature": 1}
    return recipe.override({"name": "student", "training.head_start": "random", **told})


def soft_rows() -> dict[str, int]:
    """What the cache holds of teachers."""
    return {one.encoder: one.rows for one in RowCache().held() if one.about.startswith("soft targets of liar@1")}


def test_a_student_says_what_its_teacher_says(taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = soft_rows()
    result = LoraTrainer(taught, quiet=True).fit()
    assert isinstance(result, Result)
    assert result.error is None
    assert result.metrics is not None
    assert result.metrics["accuracy"] < 0.1  # rows' own labels have no part in it
    assert result.checkpoint is not None
    adapter = Adapter.load(Path(result.checkpoint.path))
    assert adapter.card.recipe is not None
    entry = open_store(taught.store).resolve("liar")
    told: dict[str, Any] = adapter.card.recipe["distillation"]
    assert told == {"teacher": "liar@1", "sha256": entry.sha256, "temperature": 1.0, "weight": 1.0}
    assert f"| teacher | liar@1, sha256 `{entry.sha256}` |" in (Path(result.checkpoint.path) / "README.md").read_text()
    [kept] = soft_rows().items() - before.items()
    assert kept[1] == 96

    def computed(*_: Any) -> None:
        raise AssertionError("its teacher's logits are known")

    monkeypatch.setattr(distilling, "_computed", computed)
    weights = {"distillation.weight": tune.grid_search([0.0, 1.0])}
    short = {"distillation.temperature": 3, "training.num_train_epochs": 3}
    search = taught.override({"name": "search", "scaling.packs": 1, **short})
    grid = LoraTuner(search, param_space=weights, quiet=True).fit()
    found = {one.config["distillation.weight"]: one.metrics["accuracy"] for one in grid}  # type: ignore[index]
    assert found[0.0] > 0.9
    assert found[1.0] < 0.1
    runs = history(tmp_path / "runs/search")
    assert len({tuple(sorted(steps)) for steps in runs.values()}) == 1  # both in one pack, step by step


def test_a_run_goes_on_with_the_teacher_that_it_began_with(taught: Recipe, tiny_bert_folder: Path) -> None:
    """A second version of its name is another teacher."""
    short = taught.override({"name": "short", "training.max_steps": 2})
    LoraTrainer(short, quiet=True).fit()
    store = open_store(taught.store)
    store.put(Adapter.load(Path(taught.output_dir) / "short/jobs/short/adapter"), "liar")
    with pytest.raises(RecipeError, match="holds another run of that name"):
        LoraTrainer(short, quiet=True).fit()
    pinned = short.override({"name": "pinned", "distillation.teacher": "liar@1"})
    LoraTrainer(pinned, quiet=True).fit()


def test_what_is_wrong_is_said_in_a_sentence(taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task of Ray's finds too, and of large data before anything is read."""
    other = {"task.labels": ["no", "yes", "perhaps"]}
    with pytest.raises(
        RecipeError, match=r"teacher 'liar@1' has the labels yes, no, the recipe's are no, yes, perhaps"
    ):
        LoraTrainer(taught.override(other), quiet=True).fit()
    answer = predict_ref("liar", ["a good b"], taught.store)["predictions"][0]
    assert answer["label"] == "no"
    for threshold in ("ray_lora.running.large.LARGE_ROWS", "ray_lora.running.sources.LARGE_ROWS"):
        monkeypatch.setattr(threshold, 50)
    with pytest.raises(RecipeError, match="training rows, and there are 96; give a part of them"):
        LoraTrainer(taught.override({"name": "large"}), quiet=True).fit()


@pytest.mark.network
def test_the_pipeline_ends_in_its_table_and_its_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        distill.main(["--smoke", "--json"])
    except DataError as error:
        pytest.skip(str(error))
    *told, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert tasks.PIPELINES.count(found["name"]) == 1
    assert len(cells(found)) == len(HEADERS)
    assert list(found["served"]) == found["refs"]
    lines = found["lines"]
    assert list(lines) == ["teacher", "student, taught", "student, labels alone"]
    for name, line in lines.items():
        assert any(name in text for text in told), "the table has the line"
        assert 0 <= line["scores"]["accuracy"][0] <= 1
        assert line["milliseconds"] > 0
        assert (line["size_share"] == 1) == (name == "teacher")
        assert line["size_share"] <= 0.6 or name == "teacher"
