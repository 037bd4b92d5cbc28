"""COCO's mean average precision of a detector's answers, by pycocotools.

    measure(answers, features, labels)       # {"map": 0.41, "map_50": 0.63}

It knows answers and objects in pixels of their pictures.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_lora.recipe import Json

Array = np.ndarray[Any, np.dtype[Any]]


def measure(answers: Sequence[Json], features: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, float]:
    """`map`: the mean over IoU from 0.50 to 0.95 in steps of 0.05 and over labels that occur; `map_50`: at 0.50. Both 0
    where no picture has an object, which no detector can be measured on.

    Args:
        answers: of each picture, as the pipeline has them.
        features: `extent`, `boxes` and `classes` of each picture, and `crowd_boxes` and `crowd_classes`, in which no
            answer is wrong.
    """
    precision = curves(answers, features, labels)
    whole = precision[precision > -1]
    half = precision[0][precision[0] > -1]
    return {"map": float(whole.mean()) if whole.size else 0.0, "map_50": float(half.mean()) if half.size else 0.0}


def curves(answers: Sequence[Json], features: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Array:
    """Precision of all sizes of object, of the best hundred answers a label, [10 IoU, 101 recalls, labels]; -1 where a
    label does not occur."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = {
            "images": [
                {"id": number, "width": one["extent"][0], "height": one["extent"][1]}
                for number, one in enumerate(features)
            ],
            "categories": [{"id": index, "name": label} for index, label in enumerate(labels)],
            "annotations": _annotations(features),
        }
        truth.createIndex()
        found = COCO()
        found.dataset = truth.dataset | {"annotations": _results(answers, labels)}
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision: Array = evaluation.eval["precision"][..., 0, -1]
    return precision


def _annotations(features: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    objects = [
        (number, box, index, crowd)
        for number, one in enumerate(features)
        for crowd, kind in enumerate(("", "crowd_"))
        for box, index in zip(one.get(f"{kind}boxes", ()), one.get(f"{kind}classes", ()), strict=True)
    ]
    return [  # numbered from 1: COCO's measure takes 0 for none
        {"id": at, "image_id": number, "category_id": index, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for at, (number, box, index, crowd) in enumerate(objects, start=1)
    ]


def _results(answers: Sequence[Json], labels: Sequence[str]) -> list[dict[str, Any]]:
    index = {label: number for number, label in enumerate(labels)}
    results: list[dict[str, Any]] = []
    for number, answer in enumerate(answers):
        for one in answer:
            left, top, right, bottom = (one["box"][name] for name in ("xmin", "ymin", "xmax", "ymax"))
            box = [left, top, right - left, bottom - top]
            results.append(
                {
                    "id": len(results) + 1,
                    "image_id": number,
                    "category_id": index[one["label"]],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": one["score"],
                }
            )
    return results
