"""Dice and intersection over union of a segmenter's answers, by counting pixels.

    counts = count(maps, truths, 3)                # [truth, answer], pixels
    measure(counts, ("background", "cat"), "background")      # {"dice": 0.93, "iou": 0.87}

It knows whole numbers in pixels of the pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ray_lora.tasks.segmentation.masks import IGNORED, Array

Counts = np.ndarray[Any, np.dtype[np.int64]]

SMALL, MEDIUM = 32**2, 96**2  # pixels below which COCO calls an object small, and medium
SIZES = ("small", "medium", "large")


def count(maps: Iterable[Array], truths: Iterable[Array], labels: int) -> Counts:
    """How many pixels of each label (rows) were answered by each (columns), of those that somebody knows."""
    found = np.zeros((labels, labels), np.int64)
    for answer, truth in zip(maps, truths, strict=True):
        known = truth != IGNORED
        pairs = truth[known].astype(np.int64) * labels + answer[known]
        found += np.bincount(pairs, minlength=labels * labels).reshape(labels, labels)
    return found


def measure(counts: Counts, labels: Sequence[str], background: str | None) -> dict[str, float]:
    """Over all pixels of all pictures: `dice`, 2 both / (truth + answer), and `iou`, both / either, the means over the
    labels without the background that occur in truth or answers. Both 1 where none does: nothing was there, and nothing
    was said to be. Both 0 where nobody knows any pixel, on which no segmenter can be measured."""
    if not counts.any():
        return {"dice": 0.0, "iou": 0.0}
    wanted = [at for at, label in enumerate(labels) if label != background]
    both, truth, answer = counts.diagonal()[wanted], counts.sum(1)[wanted], counts.sum(0)[wanted]
    there = truth + answer > 0
    if not there.any():
        return {"dice": 1.0, "iou": 1.0}
    both, truth, answer = both[there], truth[there], answer[there]
    return {
        "dice": float((2 * both / (truth + answer)).mean()),
        "iou": float((both / (truth + answer - both)).mean()),
    }


def found_by_size(maps: Iterable[Array], truths: Iterable[Array], background: int | None) -> dict[str, tuple[int, int]]:
    """Of objects of each size, which are connected pixels of one label: how many pixels were found, and of how many."""
    from scipy import ndimage

    found = dict.fromkeys(SIZES, (0, 0))
    for answer, truth in zip(maps, truths, strict=True):
        for index in np.unique(truth).tolist():
            if index in (background, IGNORED):
                continue
            objects, _ = ndimage.label(truth == index, np.ones((3, 3)))
            areas = np.bincount(objects.ravel())[1:]
            hits = np.bincount(objects[answer == index].ravel(), minlength=len(areas) + 1)[1:]
            for area, hit in zip(areas.tolist(), hits.tolist(), strict=True):
                size = SIZES[(area >= SMALL) + (area >= MEDIUM)]
                found[size] = (found[size][0] + hit, found[size][1] + area)
    return found
