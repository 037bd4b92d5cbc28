"""Large data: the same training from one file, many files and a Ray dataset; encoded once; wrong rows; lost nodes."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import ray
from ray.train import Result, ScalingConfig
from transformers import ViTImageProcessor

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import describe_base
from ray_lora.data import named_files
from ray_lora.data.encoder import Encoder
from ray_lora.data.files import find_files
from ray_lora.data.pieces import cut, digest
from ray_lora.data.remembered import forget
from ray_lora.data.row_cache import BOUND, RowCache
from ray_lora.errors import DataError
from ray_lora.recipe import Recipe
from ray_lora.running import large, sources
from ray_lora.running.encoding import kept
from ray_lora.running.sources import Source, inspect, prepare
from ray_lora.running.trainer import LoraTrainer
from tests.ray.rows import alone, in_files, table, tiny_recipe
from tests.unit.bases import save_base
from tests.unit.cases import picture, png

pytestmark = pytest.mark.usefixtures("cluster", "all_is_large")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def all_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE_ROWS", 1)
    monkeypatch.setattr(sources, "LARGE_ROWS", 1)
    RowCache().clear()
    forget()


def fitted(recipe: Recipe, workers: int = 1, **more: object) -> Adapter:
    scaling = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1})
    result = LoraTrainer(recipe, scaling_config=scaling, quiet=True, **more).fit()  # type: ignore[arg-type]
    assert isinstance(result, Result)
    assert result.error is None
    assert result.checkpoint is not None
    return Adapter.load(Path(result.checkpoint.path))


def prepared(recipe: Recipe) -> Source:
    return prepare(recipe, processor=describe_base(recipe.base).processor)


def test_the_same_training_whatever_the_files(tiny_bert_folder: Path, tmp_path: Path, bucket: str) -> None:
    """One jsonl file in one process; 37 parquet files and two workers; files in a bucket; a Ray dataset."""
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, training__num_train_epochs=1)
    expected = alone(recipe, tmp_path / "alone")[1]
    rows = {split: table(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    folders = {f"data.{split}": in_files(rows[split], tmp_path / split, 37) for split in rows}
    many = recipe.override({**folders, "name": "many", "training.per_device_train_batch_size": 4})
    given = recipe.override({"data.train": None, "data.validation": None, "name": "given"})
    datasets = {split: ray.data.from_arrow([part]) for split, part in rows.items()}
    filesystem, _ = pa.fs.FileSystem.from_uri(f"s3://key:secret@rows/{bucket}")
    for split in rows:
        pa.fs.copy_files(in_files(rows[split], tmp_path / f"to-{split}", 3), f"rows/large/{split}",
                         destination_filesystem=filesystem)  # fmt: skip
    addresses = {f"data.{split}": f"s3://key:secret@rows/large/{split}/{bucket}" for split in rows}
    away = recipe.override({**addresses, "name": "away"})
    for found in (fitted(many, 2), fitted(away), fitted(given, datasets=datasets)):
        assert found.tensors.keys() == expected.tensors.keys()
        for name, tensor in expected.tensors.items():
            assert (found.tensors[name] - tensor).abs().max() < 1e-4, name
    remembered = "".join(path.read_text() for path in (RowCache().folder / "known").iterdir())
    assert "secret" not in remembered
    assert all(path.suffix != ".lock" for path in RowCache().folder.glob("*/*"))


def test_rows_are_encoded_once(tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path)
    folder = in_files(table(tmp_path / "train.jsonl"), tmp_path / "rows", 5)
    recipe = recipe.override({"data.train": folder, "task.labels": None})
    first = prepared(recipe)
    assert first.task == recipe.override({"task.labels": ["no", "yes"]}).task
    assert inspect(recipe) == (first.task, {"train": 96, "validation": 40})
    assert first.identity["train.sha256"] == digest(sources.files_of(recipe)["train"])
    (held,) = RowCache().held()
    assert (held.pieces, held.rows) == (6, 136)
    with monkeypatch.context() as nobody:
        for name in ("encode", "survey", "look_at"):
            nobody.setattr(large, name, None)
        again = prepared(recipe)
        assert {split: again.rows(split) for split in again.splits} == {"train": 96, "validation": 40}
    torn = sorted(RowCache().folder.glob("*/*.arrow"))[2]
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    prepared(recipe)
    assert torn.read_bytes() == whole
    kept = {path.name: path.stat().st_ino for path in torn.parent.glob("*.arrow")}
    part = tmp_path / "rows/part-001.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)  # one file is written anew: the others are taken as they are
    assert prepared(recipe).rows("train") == 95
    now = {path.name: path.stat().st_ino for path in torn.parent.glob("*.arrow")}
    assert {name: now[name] for name in kept} == kept
    assert len(now) == len(kept) + 1
    both = prepared(recipe.override({"data.validation": folder}))  # whoever scores the rows that trained
    assert (both.rows("train"), both.rows("validation")) == (95, 95)


def test_wrong_rows_are_named_before_anything_trains(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path)
    rows = table(tmp_path / "train.jsonl").to_pylist()
    for number in range(30, 50):
        rows[number]["label"] = "perhaps"
    rows[70]["text"] = " "
    folder = in_files(pa.Table.from_pylist(rows), tmp_path / "rows", 3)
    with pytest.raises(DataError) as caught:
        LoraTrainer(recipe.override({"data.train": folder}), quiet=True).fit()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{folder}/part-000.parquet, row 31: label 'perhaps' is not one of 'no', 'yes'")
    assert [line.split(": ")[0].split("/")[-1] for line in lines[1:3]] == [
        "part-000.parquet, row 32", "part-001.parquet, row 1"]  # fmt: skip
    assert lines[-1] == "and 11 more wrong rows in 3 files"
    assert not (tmp_path / "runs/tiny/jobs").exists()
    pq.write_table(pa.table({"text": ["a"], "mood": ["no"]}), tmp_path / "rows/part-001.parquet")
    with pytest.raises(DataError, match=r"(?s)'label' differs between files.*no such column: \S*part-001\.parquet"):
        prepared(recipe.override({"data.train": folder}))
    (tmp_path / "rows/part-001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"part-001\.parquet' is broken"):
        prepared(recipe.override({"data.train": folder}))


def test_rows_that_name_pictures_are_encoded_once_and_anew_where_one_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_files, "_ROWS", 2)
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(picture(number)))
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(5)))
    base = save_base("resnet", tmp_path / "base")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(base)
    told = {"base": {"model": str(base)}, "task": {"type": "image-classification"}}
    recipe = Recipe.parse(told | {"data": {"train": str(tmp_path / "rows.csv")}, "tracking": {"uri": None}})
    first = prepared(recipe)
    assert (first.rows("train"), first.task.labels) == (5, ("a", "b"))  # type: ignore[attr-defined]
    (held,) = RowCache().held()
    assert (held.pieces, held.rows) == (3, 5)
    with monkeypatch.context() as nobody:
        for name in ("encode", "survey", "look_at"):
            nobody.setattr(large, name, None)
        assert prepared(recipe).identity == first.identity
    split = first.splits["train"]
    assert isinstance(split, large.Encoded)
    before = [stretch.open()[0]["pixel_values"] for stretch in large.stretches(split, 1)]
    (tmp_path / "4.png").write_bytes(png(picture(9)))
    changed = prepared(recipe)
    assert changed.identity["train.sha256"] != first.identity["train.sha256"]
    split = changed.splits["train"]
    assert isinstance(split, large.Encoded)
    after = [stretch.open()[0]["pixel_values"] for stretch in large.stretches(split, 1)]
    assert [bool((one == other).all()) for one, other in zip(before, after, strict=True)] == [True, True, False]


def test_a_run_that_needs_more_than_the_cache_may_take(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path)
    encoder = Encoder.of(recipe.task, describe_base(recipe.base).processor, {})
    first, second = (cut(find_files(str(tmp_path / f"{split}.jsonl")))[0] for split in ("train", "validation"))
    kept(first, "old", encoder, recipe.data, begun=0.0)
    monkeypatch.setenv(BOUND, str(1.5 * RowCache().path(encoder.key, "old").stat().st_size / 1e9))
    assert len(kept(second, "new", encoder, recipe.data, begun=time.time())) == 40  # what was there before goes
    assert not RowCache().has(encoder.key, "old")
    with pytest.raises(DataError, match=r"of this run alone take more than .* GB; set RAY_LORA_ROWS_GB to more"):
        kept(first, "more", encoder, recipe.data, begun=0.0)
