"""The scenes' rows: boxes hold what drawings cover, drawings and parts of photographs are in one split alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines import emoji_scenes
from pipelines.emoji_scenes import CLASSES, Drawing, files, scene

COLOURS = {"animals": (250, 0, 0), "food": (0, 250, 0), "travel": (0, 0, 250), "smileys": (250, 0, 250)}


def drawings() -> list[Drawing]:
    """Discs, one colour a class and one brightness a drawing."""
    found = []
    for label, colour in COLOURS.items():
        for number in range(12):
            picture = Image.new("RGBA", (64, 64))
            ImageDraw.Draw(picture).ellipse(
                (6, 14, 57, 49), fill=(*(value - 8 * number if value else 0 for value in colour), 255)
            )
            found.append(Drawing(f"{label}{number}", label, picture))
    return found


def photographs() -> list[Image.Image]:
    """Dark on the left, lighter on the right."""
    pixels = np.zeros((300, 500, 3), np.uint8)
    pixels[:, 300:] = 60
    return [Image.fromarray(pixels)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    monkeypatch.setattr(emoji_scenes, "SIZES", {"train": 30, "validation": 6, "test": 10})
    return files(drawings(), photographs())


def test_boxes_hold_what_is_drawn() -> None:
    by_class = [[one for one in drawings() if one.label == label] for label in CLASSES.values()]
    seen = 0
    for number in range(20):
        row = scene(np.random.default_rng(number), by_class, photographs())
        pixels = np.asarray(Image.open(io.BytesIO(row["image"])), np.int16)
        assert pixels.shape == (256, 256, 3)
        bright = pixels.max(2) > 130
        outside = bright.copy()
        for (x, y, wide, high), label in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
            left, top, right, low = int(x), int(y), int(x + wide), int(y + high)
            assert 0 <= left < right <= 256
            assert 0 <= top < low <= 256
            outside[max(top - 2, 0) : low + 2, max(left - 2, 0) : right + 2] = False
            if len(row["objects"]["bbox"]) == 1:
                ys, xs = np.nonzero(bright)
                edges = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
                assert np.abs(np.subtract(edges, (left, top, right, low))).max() <= 2, "but for what JPEG blurs"
                middle = pixels[(top + low) // 2, (left + right) // 2]
                assert [value > 100 for value in middle] == [value > 100 for value in COLOURS[label]]
                seen += 1
        assert not outside.any(), "nothing is drawn that no box holds"
    assert seen


def test_splits_share_no_drawing_and_no_ground(made: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    assert {name: len(rows) for name, rows in made.items()} == {
        "detection/train.parquet": 30, "detection/validation.parquet": 6, "detection/test.parquet": 10,
    }  # fmt: skip
    for name, rows in made.items():
        for row in rows:
            pixels = np.asarray(Image.open(io.BytesIO(row["image"])), np.int16)
            ground = np.median(pixels[:, [0, 255]]) if not row["objects"]["bbox"] else None
            if ground is not None:
                assert (ground < 30) == ("train" in name)
    again = files(drawings(), photographs())
    assert again == made, "the same rows every time"
