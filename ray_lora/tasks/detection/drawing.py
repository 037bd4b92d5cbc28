"""Pictures of a detector's answers: boxes on held-out pictures, and precision over recall. It knows matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ray_lora.recipe import Json
from ray_lora.tasks.detection.geometry import iou
from ray_lora.tasks.detection.scoring import curves
from ray_lora.tasks.sheet import RIGHT, WRONG, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST = 0.5  # the score of an answer that is drawn
_SHARED = 0.5  # IoU from which an answer is right
_MOST_CURVES = 12  # labels whose curves can be told apart


def drawn(
    answers: Sequence[Json],
    features: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    shown: Callable[[Tensor], Tensor],
) -> Mapping[str, Figure]:
    """`boxes`: in the upper row the pictures with the least wrong, in the lower one those with the most; an object is
    white, an answer green where it is right and red where it is wrong. `precision_recall`: at an IoU of 0.5.

    Args:
        shown: an input as red, green and blue from 0 to 1.
    """
    from matplotlib.patches import Rectangle

    judged = [_judge(answer, one, labels) for answer, one in zip(answers, features, strict=True)]
    order = sorted(range(len(judged)), key=lambda row: _wrong(judged[row], features[row]))

    def draw(axis: Any, row: int) -> None:
        one = features[row]
        (width, height), (wide, high) = one["extent"], one["inside"]
        pixels = shown(one["pixel_values"])[:, :high, :wide]
        axis.imshow(pixels.permute(1, 2, 0).clamp(0, 1).numpy(), extent=(0, width, height, 0))
        boxes = [(box, "white", "") for box in one["boxes"]]
        for answer, right in judged[row]:
            left, top, far, low = (answer["box"][name] for name in ("xmin", "ymin", "xmax", "ymax"))
            said = f"{answer['label']} {answer['score']:.2f}"
            boxes.append(([left, top, far - left, low - top], RIGHT if right else WRONG, said))
        for (x, y, across, down), colour, said in boxes:
            axis.add_patch(Rectangle((x, y), across, down, fill=False, edgecolor=colour))
            axis.text(x, y, said, color=colour, fontsize=7, clip_on=True)

    return {"boxes": sheet(order, draw), "precision_recall": _precision_recall(answers, features, labels)}


def _precision_recall(answers: Sequence[Json], features: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    precision = curves(answers, features, labels)[0]  # [101 recalls, labels]
    figure = Figure(figsize=(5, 5), layout="tight")
    axis = figure.subplots()
    recalls = np.linspace(0, 1, len(precision))
    known = [at for at in range(len(labels)) if (precision[:, at] > -1).all()]
    for at in known[:_MOST_CURVES]:
        axis.plot(recalls, precision[:, at], linewidth=1, label=labels[at])
    if known:
        axis.plot(recalls, precision[:, known].mean(1), color="black", label="mean")
        axis.legend(fontsize=7)
    axis.set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    return figure


def _judge(answer: Json, one: Mapping[str, Any], labels: Sequence[str]) -> list[tuple[Any, bool]]:
    """The answers that are drawn, and whether each finds an object that no surer one found."""
    free = list(zip(one["boxes"], one["classes"], strict=True))
    found = []
    for item in answer:
        if item["score"] < _LEAST:
            continue
        corners = [item["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")]
        mine = [at for at, (_, index) in enumerate(free) if labels[index] == item["label"]]
        shares = [_shared(corners, free[at][0]) for at in mine]
        right = max(shares, default=0.0) >= _SHARED
        if right:
            free.pop(mine[shares.index(max(shares))])
        found.append((item, right))
    return found


def _shared(corners: Sequence[float], box: Sequence[float]) -> float:
    x, y, wide, high = box
    one, other = (torch.tensor(values, dtype=torch.float64) for values in (corners, [x, y, x + wide, y + high]))
    return float(iou(one, other))


def _wrong(judged: Sequence[tuple[Any, bool]], one: Mapping[str, Any]) -> int:
    """Objects that were not found and answers that found none."""
    right = sum(right for _, right in judged)
    return len(one["boxes"]) - right + len(judged) - right
