"""The digits' rows and the base pretrained on them: one split for all variants, the same every time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines import digits_base
from pipelines.digits_base import SHARES, pretrain, split_digits, write_rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_rows(out)
    return out


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretraining of one epoch on a few of the digits."""
    few = {split: rows[:96] for split, rows in split_digits().items()}
    monkeypatch.setattr(digits_base, "split_digits", lambda: few)
    monkeypatch.setitem(digits_base.TRAINING, "epochs", 1)


def pictures(out: Path, variant: str, split: str) -> list[np.ndarray]:
    table = pq.read_table(out / f"digits-{variant}/{split}.parquet")
    assert table.schema.equals(digits_base.SCHEMA)
    images = [Image.open(io.BytesIO(data)) for data in table["image"].to_pylist()]
    assert {(image.format, image.mode, image.size) for image in images} == {("PNG", "RGB", (32, 32))}
    return [np.asarray(image) for image in images]


def labels(out: Path, variant: str, split: str) -> list[str]:
    return [str(label) for label in pq.read_table(out / f"digits-{variant}/{split}.parquet")["label"].to_pylist()]


@pytest.mark.parametrize("split", SHARES)
def test_variants_hold_the_same_digits(made: Path, split: str) -> None:
    upright = pictures(made, "upright", split)
    for one, rotated, inverted in zip(
        upright, pictures(made, "rotated", split), pictures(made, "inverted", split), strict=True
    ):
        assert (np.rot90(one) == rotated).all()
        assert (255 - one == inverted).all()
    assert labels(made, "upright", split) == labels(made, "rotated", split) == labels(made, "inverted", split)
    assert set(labels(made, "upright", split)) == set("0123456789")


def test_no_digit_is_in_two_splits(made: Path) -> None:
    found = {split: {picture.tobytes() for picture in pictures(made, "upright", split)} for split in SHARES}
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 1797
    for split, share in SHARES.items():
        assert len(found[split]) == pytest.approx(share * 1797, rel=0.1)


def test_rows_are_the_same_every_time(made: Path, tmp_path: Path) -> None:
    write_rows(tmp_path)
    files = [path.relative_to(made) for path in made.rglob("*.parquet")]
    assert len(files) == 9
    assert all((made / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


@pytest.mark.usefixtures("short")
def test_the_base_is_a_plain_folder_made_once_and_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    before = torch.random.get_rng_state()
    folder = pretrain(tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = (folder / "model.safetensors").read_bytes()
    torch.rand(1)  # whoever drew numbers before does not matter
    assert (pretrain(tmp_path / "b") / "model.safetensors").read_bytes() == weights

    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model).__name__ == "ResNetForImageClassification"
    assert model.num_parameters() < 1_000_000
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(Image.new("L", (8, 8)).convert("RGB"), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.min() == pixels.max() == -1
    assert "pretrained by this project" in (folder / "README.md").read_text()

    monkeypatch.setattr(digits_base, "_train", None)
    assert pretrain(tmp_path / "a") == folder
    monkeypatch.setitem(digits_base.TRAINING, "seed", 1)  # another making: the folder is not what is asked for
    with pytest.raises(TypeError):
        pretrain(tmp_path / "a")


@pytest.mark.usefixtures("short")
def test_the_base_learns_from_the_train_split_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (pretrain(tmp_path / "a") / "model.safetensors").read_bytes()
    real = digits_base.split_digits()
    blank = [(Image.new("RGB", (32, 32)), label) for _, label in real["test"]]
    monkeypatch.setattr(digits_base, "split_digits", lambda: {**real, "validation": [], "test": blank})
    assert (pretrain(tmp_path / "b") / "model.safetensors").read_bytes() == weights
