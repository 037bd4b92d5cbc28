"""Pictures with bright rectangles on a dark ground, where they are, and the answer that finds all of them."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
from PIL import Image

TASK = "tests.boxes.task:Boxes"
BASE = "tests.boxes.base:build"


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Every third picture has two things in it, every fifth none."""
    return [{"image": picture(seed + at, boxes_of(seed + at)), "boxes": boxes_of(seed + at)} for at in range(count)]


def boxes_of(number: int) -> list[list[float]]:
    draw = random.Random(number)
    count = 0 if number % 5 == 3 else 1 + (number % 3 == 0)
    return [
        [float(22 * at + draw.randint(0, 4)), float(draw.randint(0, 8)), float(draw.randint(8, 16)), 12.0]
        for at in range(count)
    ]


def picture(number: int, boxes: list[list[float]] | None = None) -> bytes:
    """A PNG file of 44 x 32 pixels, or up to 4 more."""
    pixels = np.random.default_rng(number).integers(0, 60, (32, 44 + number % 5, 3), dtype=np.uint8)
    for x, y, wide, high in boxes or []:
        pixels[int(y) : int(y + high), int(x) : int(x + wide)] += 150
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(data: bytes) -> list[Any]:
    """A picture file as numbers [height, width, 3]."""
    values: list[Any] = np.asarray(Image.open(io.BytesIO(data))).tolist()
    return values


def best_answer(row: Any) -> list[dict[str, Any]]:
    return [
        {"score": 1.0, "box": {"xmin": x, "ymin": y, "xmax": x + wide, "ymax": y + high}}
        for x, y, wide, high in row["boxes"]
    ]
