"""The small YOLOX of drawn shapes: boxes are what is drawn, it is trained once and has names."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import detection_base
from ray_lora.bases.load import load_base
from ray_lora.recipe import BaseSpec


def test_boxes_hold_what_is_drawn_and_nothing_else() -> None:
    seen = 0
    for number in range(20):
        row = detection_base.scene(random.Random(number))
        picture = np.array(Image.open(io.BytesIO(row["image"])).convert("RGB")).astype(int)
        drawn = np.abs(picture - picture[-1, -1]).sum(-1) if _corner_is_free(row, picture) else None
        if drawn is None:
            continue
        for x, y, wide, high in (map(int, box) for box in row["objects"]["bbox"]):
            part = drawn[y : y + high, x : x + wide] > 0
            assert part.any(1).all(), "from the first row of the box to its last"
            assert part.any(0).mean() > 0.95  # a triangle's point may end between two pixels
            drawn[y : y + high, x : x + wide] = 0
            seen += 1
        assert not drawn.any()
    assert seen > 10


def _corner_is_free(row: dict[str, dict[str, list[list[float]]]], picture: np.ndarray) -> bool:
    height, width = picture.shape[:2]
    return all(x + wide < width or y + high < height for x, y, wide, high in row["objects"]["bbox"])


def test_the_base_is_trained_once_and_knows_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detection_base, "ROWS", {"train": 16, "validation": 4, "test": 4})
    monkeypatch.setitem(detection_base.TRAINING, "steps", 2)
    folder = detection_base.prepare(tmp_path)
    assert "897,144 parameters; on the test split map" in capsys.readouterr().out
    assert "pretrained by this project" in (folder / "README.md").read_text()
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    assert base.labels == detection_base.SHAPES
    assert base.processor.size == (128, 128)
    assert len(pq.read_table(tmp_path / "shapes/train.parquet")) == 16
    monkeypatch.setattr(detection_base, "_train", None)
    assert detection_base.prepare(tmp_path) == folder  # nothing is trained again
    monkeypatch.setitem(detection_base.TRAINING, "steps", 3)  # another making
    with pytest.raises(TypeError):
        detection_base.prepare(tmp_path)
    assert json.loads((folder / "pretraining.json").read_text())["making"]["training"]["steps"] == 2
