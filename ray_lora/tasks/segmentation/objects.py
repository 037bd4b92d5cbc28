"""The objects of a picture as areas, as COCO and Hugging Face's data sets have them:

    {"segmentation": [[[10, 10, 40, 10, 40, 30]], {"size": [480, 640], "counts": "..."}], "category": ["cat", "dog"]}

or a list of one mapping for each object; other keys are not read. An area is a list of polygons, x and y in turn, or
run lengths down the columns (RLE), as numbers or packed into a text. It knows values, no labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_lora.errors import DataError
from ray_lora.tasks.rows import shown

Area = np.ndarray[Any, np.dtype[np.bool_]]

_SLACK = 1.0  # pixels by which annotations' rounding may lead out of the picture
_SHAPE = "give {'segmentation': [...], 'category': [...]}, of a picture without objects two empty lists"


def objects_of(value: Any) -> tuple[list[Any], list[Any]]:
    """Segmentations and categories of a row's objects; DataError where there is not one of each."""
    if isinstance(value, (list, tuple)):
        if not all(isinstance(one, Mapping) and "segmentation" in one and "category" in one for one in value):
            raise DataError(f"objects {shown(value)} are no areas with categories; {_SHAPE}")
        value = {name: [one[name] for one in value] for name in ("segmentation", "category")}
    if not isinstance(value, Mapping) or not all(isinstance(value.get(k), list) for k in ("segmentation", "category")):
        raise DataError(f"objects {shown(value)} are no areas with categories; {_SHAPE}")
    areas, categories = value["segmentation"], value["category"]
    if len(areas) != len(categories):
        raise DataError(f"there are {len(areas)} segmentations and {len(categories)} categories; give one for each")
    return areas, categories


def area_of(segmentation: Any, size: tuple[int, int]) -> Area:
    """The pixels of an object, [height, width].

    Args:
        size: width and height of the picture.

    Raises:
        DataError: it is neither polygons nor run lengths, or not of this picture.
    """
    if isinstance(segmentation, Mapping) and segmentation.get("counts") is not None:
        return _run_lengths(segmentation, size)
    if not isinstance(segmentation, (list, tuple)) or not segmentation:
        raise DataError(
            f"segmentation {shown(segmentation)} is no list of polygons and no {{'size', 'counts'}}; leave an object "
            "without an area out"
        )
    from pycocotools import mask

    polygons = [_polygon(one, size) for one in segmentation]
    return _run_lengths(mask.merge(mask.frPyObjects(polygons, size[1], size[0])), size)


def _polygon(points: Any, size: tuple[int, int]) -> list[float]:
    numbers = isinstance(points, (list, tuple)) and len(points) >= 6 and len(points) % 2 == 0
    if not numbers or not all(map(_is_number, points)):
        raise DataError(f"polygon {shown(points)} is not three points or more, x and y of each as finite numbers")
    for edge, values in zip(size, (points[::2], points[1::2]), strict=True):
        if min(values) < -_SLACK or max(values) > edge + _SLACK:
            raise DataError(
                f"polygon {shown(list(points))} leads out of its picture of {size[0]} x {size[1]} pixels; points are x "
                "and y in pixels of the upright picture, no shares"
            )
    return [min(max(float(value), 0.0), float(size[at % 2])) for at, value in enumerate(points)]  # rounding is cut


def _run_lengths(given: Mapping[str, Any], size: tuple[int, int]) -> Area:
    """Pixels down the columns, which are in turn none of the object's and its own."""
    if list(given.get("size") or ()) != [size[1], size[0]]:
        raise DataError(
            f"run lengths of size {shown(given.get('size'))} on a picture of height {size[1]} and width {size[0]}"
        )
    counts = given["counts"]
    if isinstance(counts, (str, bytes)):
        counts = _unpacked(counts.encode() if isinstance(counts, str) else counts)
    whole = isinstance(counts, (list, tuple)) and all(type(count) is int and count >= 0 for count in counts)
    if not whole or sum(counts) != size[0] * size[1]:
        raise DataError(
            f"run lengths {shown(given['counts'])} do not fill a picture of {size[0]} x {size[1]} pixels exactly"
        )
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.asarray(flat.reshape(size).T)


def _unpacked(text: bytes) -> Sequence[int]:
    """COCO's text of run lengths: five bits a letter, the lowest first; from the fourth on the difference to the last
    but one (pycocotools' `rleFrString`)."""
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            if at == len(text) or not 48 <= text[at] < 112 or shift > 60:
                raise DataError(f"run lengths {shown(text)} are not COCO's packed text")
            letter = text[at] - 48
            value |= (letter & 31) << shift
            more, shift, at = bool(letter & 32), shift + 5, at + 1
            if not more and letter & 16:
                value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
