"""Answers of a detector in the shape of Hugging Face's `object-detection` pipeline, best first:

    [{"score": 0.97, "label": "cat", "box": {"xmin": 12, "ymin": 3, "xmax": 96, "ymax": 71}}]

in pixels of the caller's picture. It knows tensors of one picture and what a request may ask for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ray_lora.recipe import Json
from ray_lora.tasks.detection.geometry import in_picture, keep_best
from ray_lora.tasks.detection.options import Options

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def no_number(labels: Sequence[str]) -> list[Json]:
    """The answer of outputs that are no numbers: its score is none either, so nobody takes it for an empty picture."""
    return [{"score": math.nan, "label": labels[0], "box": dict.fromkeys(_CORNERS, 0)}]


def answer(
    scores: Tensor, boxes: Tensor, picture: Mapping[str, Any], labels: Sequence[str], options: Options
) -> list[Json]:
    """One picture's objects: each anchor's best label, where it is sure enough and its box is in the picture.

    Args:
        scores: [anchors, labels]. boxes: corners in the input, [anchors, 4].
        picture: `extent`, its width and height, and `inside`, those that it takes of the input.
    """
    best, label = scores.max(1)
    order = best.argsort(descending=True, stable=True)
    order = order[best[order] >= options.threshold]
    found = in_picture(boxes[order], picture["extent"], picture["inside"])
    seen = ((found[:, 2:] - found[:, :2]) > 0).all(1)  # not in the margin
    found, order = found[seen], order[seen]
    kept = keep_best(found, label[order], options.iou, options.top_k)
    found, order = found[kept], order[kept]
    numbers: list[list[float]] = (found.round().int() if options.rounded else found).tolist()
    return [
        {"score": score, "label": labels[index], "box": dict(zip(_CORNERS, corners, strict=True))}
        for score, index, corners in zip(best[order].tolist(), label[order].tolist(), numbers, strict=True)
    ]
