"""The objects of a picture, as Hugging Face's data sets for object detection have them:

    {"bbox": [[x, y, width, height], ...], "category": ["cat", ...]}      # COCO's boxes, in the picture's pixels

or a list of one mapping for each object; other keys (`id`, `area`) are not read. A picture without objects has empty
lists. A crowd (`iscrowd`, true or 1) is many things in one box: nothing learns it, and no answer inside it is wrong, as
COCO's measure has it. This module knows values, no pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray_lora.errors import DataError
from ray_lora.tasks.rows import shown

Box = Sequence[float]

_SLACK = 1.0  # pixels by which annotations' rounding may lead out of the picture
_SHAPE = "give {'bbox': [[x, y, width, height], ...], 'category': [...]}, of a picture without objects two empty lists"


def objects_of(value: Any, crowds: bool = False) -> tuple[list[list[float]], list[Any]]:
    """Boxes and categories of a row's objects, or of its crowds.

    Raises:
        DataError: there are not as many of one as of the other, or a box is no four finite numbers with a size.
    """
    if isinstance(value, (list, tuple)):
        names = [name for name in ("bbox", "category", "iscrowd") if any(_has(one, name) for one in value)]
        if not all(_has(one, "bbox") and _has(one, "category") for one in value):
            raise DataError(f"objects {shown(value)} are no boxes with categories; {_SHAPE}")
        value = {name: [one.get(name) for one in value] for name in names} if value else {"bbox": [], "category": []}
    if not isinstance(value, Mapping) or not all(isinstance(value.get(name), list) for name in ("bbox", "category")):
        raise DataError(f"objects {shown(value)} are no boxes with categories; {_SHAPE}")
    boxes, categories = value["bbox"], value["category"]
    if len(boxes) != len(categories):
        raise DataError(f"there are {len(boxes)} boxes and {len(categories)} categories; give one for each")
    told = value.get("iscrowd")
    flags = [False] * len(boxes) if told is None else told
    if not isinstance(flags, list) or len(flags) != len(boxes) or any(flag not in (None, 0, 1) for flag in flags):
        raise DataError(f"iscrowd is {shown(told)}; give 0 or 1 for each box, or leave it out")
    mine = [at for at, flag in enumerate(flags) if bool(flag) == crowds]
    checked = [_box(box) for box in boxes]
    return [checked[at] for at in mine], [categories[at] for at in mine]


def outside(boxes: Sequence[Box], width: int, height: int) -> str | None:
    """What to say of the first box that is not in a picture of this size, or only in the rounding around it."""
    for box in boxes:
        x, y, wide, high = box
        beyond = min(x, y) < -_SLACK or x + wide > width + _SLACK or y + high > height + _SLACK
        if beyond or min(clipped(box, width, height)[2:]) <= 0:
            return (
                f"box {shown(list(box))} leads out of its picture of {width} x {height} pixels; boxes are [x, y, "
                "width, height] in pixels of the upright picture, no corners and no shares"
            )
    return None


def clipped(box: Box, width: int, height: int) -> list[float]:
    """The part of a box that is in the picture."""
    x, y, wide, high = box
    left, top = min(max(x, 0.0), width), min(max(y, 0.0), height)
    return [left, top, min(max(x + wide, 0.0), width) - left, min(max(y + high, 0.0), height) - top]


def _has(one: Any, name: str) -> bool:
    return isinstance(one, Mapping) and one.get(name) is not None


def _box(box: Any) -> list[float]:
    numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_number, box))
    if not numbers:
        raise DataError(f"box {shown(box)} is not [x, y, width, height], four finite numbers")
    x, y, wide, high = map(float, box)
    if x + wide <= x or y + high <= y:
        raise DataError(
            f"box {shown(box)} has no area; boxes are [x, y, width, height], so of corners give the differences, and "
            "leave an object of no size out"
        )
    return [x, y, wide, high]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
