"""How far two answers to one row are the same, scores aside: rounding may move a box's corner or a mask's pixel by one.

    alike([{"label": "cat", "score": 0.9}], [{"label": "cat", "score": 0.8}])      # 1.0

It knows answers: no engines and no graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ray_lora.recipe import Json

_PIXEL = 1  # by which a corner may differ


def alike(one: Json, other: Json) -> float:
    """From 0 to 1: of masks the share of pixels that both give one label, of all else whether they are equal."""
    if isinstance(one, list) and isinstance(other, list) and any("mask" in _mapping(answer) for answer in other):
        return _of_masks(one, other)
    return float(_equal(one, other))


def _equal(one: Json, other: Json) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return False
        if "xmin" in one:
            return all(abs(one[key] - other[key]) <= _PIXEL for key in one)
        return all(_equal(one[key], other[key]) for key in one if key != "score")
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _of_masks(one: list[Json], other: list[Json]) -> float:
    first, second = _map(one), _map(other)
    if first is None or second is None or first.shape != second.shape:
        return 0.0
    return float((first == second).mean())


def _map(answers: list[Json]) -> Any:
    """Each pixel's label, [height, width]; None where there is no mask."""
    from ray_lora.tasks.segmentation.answers import decoded

    found: Any = None
    for answer in answers:
        told: Any = _mapping(answer)
        here = decoded(told["mask"]) > 0
        found = np.full(here.shape, "", object) if found is None else found
        found[here] = told["label"]
    return found


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}
