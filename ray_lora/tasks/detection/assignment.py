"""Which anchors learn which object: SimOTA (YOLOX, arXiv 2107.08430, section 2, and its public training, whose
constants these are).

    found = assign(scores, boxes, objects, classes, grid)
    found.anchors, found.objects      # which anchor learns which object

Each object takes as many anchors as its best ten boxes share of it together; those whose class and box cost least, of
the anchors around its middle. An anchor that several objects want goes to the one that it costs least.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ray_lora.tasks.detection.geometry import Grid, iou

_RADIUS = 1.5  # cells around an object's middle in which anchors may learn it
_BEST = 10  # boxes whose shares say how many anchors an object takes
_BOX = 3.0  # what a box's cost weighs beside the class's
_FAR = 1e6  # the cost of an anchor around another object's middle only
_TINY = 1e-8
_LEAST_LOG = -100.0  # as torch's binary cross entropy cuts logarithms


@dataclass(frozen=True)
class Assigned:
    """What anchors learn.

    Attributes:
        anchors: the numbers of those that learn an object, [n]; objects: of which one, [n].
        shared: the intersection over union of their boxes now, [n].
    """

    anchors: Tensor
    objects: Tensor
    shared: Tensor


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, objects: Tensor, classes: Tensor, grid: Grid) -> Assigned:
    """The learning anchors of one picture; all others learn that nothing is there.

    Args:
        scores: how sure each anchor is of each class, from 0 to 1, [anchors, classes].
        boxes: corners, [anchors, 4].
        objects: corners, [objects, 4]; classes: theirs, [objects].
    """
    middles = (objects[:, :2] + objects[:, 2:]) / 2
    near = (grid.middles[None] - middles[:, None]).abs().amax(-1) < _RADIUS * grid.strides  # [objects, anchors]
    chosen = near.any(0).nonzero().flatten()
    near, own, scores = near[:, chosen], boxes[chosen], scores[chosen]
    shared = torch.nan_to_num(iou(objects[:, None], own[None]))
    cost = _class_cost(scores, classes) - _BOX * (shared + _TINY).log() + _FAR * ~near
    cost = torch.nan_to_num(cost, nan=_FAR, posinf=_FAR)
    takes = torch.zeros_like(near)
    count = min(_BEST, len(chosen))
    wanted = shared.topk(count, 1).values.sum(1).int().clamp(min=1)
    for number, most in enumerate(wanted.tolist()):
        takes[number, cost[number].topk(min(most, len(chosen)), largest=False).indices] = True
    several = takes.sum(0) > 1
    cheapest = cost[:, several].argmin(0)
    takes[:, several] = False
    takes[cheapest, several] = True
    anchors = takes.any(0).nonzero().flatten()
    matched = takes[:, anchors].int().argmax(0)
    return Assigned(chosen[anchors], matched, shared[matched, anchors])


def _class_cost(scores: Tensor, classes: Tensor) -> Tensor:
    """Binary cross entropy of every anchor's scores with every object's class, [objects, anchors]."""
    yes, no = (value.log().clamp(min=_LEAST_LOG) for value in (scores, 1 - scores))
    return (no - yes)[:, classes].T - no.sum(1)
