"""The loss of one picture: how far its learning anchors' boxes are off, and how sure anchors are of what.

As in YOLOX's public training (arXiv 2107.08430, section 2): 1 - IoU^2 of boxes, which weighs five times, and binary
cross entropy of objectness on all anchors and of classes on those that learn, whose target is the IoU of their box.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_lora.tasks.detection.assignment import assign
from ray_lora.tasks.detection.geometry import Grid, iou

_BOX = 5.0


def picture_loss(
    logits: Tensor, objectness: Tensor, boxes: Tensor, objects: Tensor, classes: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """The sum of a picture's losses, and its number of learning anchors, at least one; both [].

    Args:
        logits: [anchors, classes]. objectness: [anchors]. boxes: corners, [anchors, 4].
        objects: corners, [objects, 4]; classes: theirs, [objects].
    """
    held = torch.zeros_like(objectness)
    if not len(objects):
        return _unsure(objectness, held), objectness.new_ones(())
    sure = (logits.detach().sigmoid() * objectness.detach().sigmoid()[:, None]).sqrt()
    found = assign(sure, boxes.detach(), objects, classes, grid)
    held[found.anchors] = 1
    off = 1 - iou(boxes[found.anchors], objects[found.objects]).square()
    target = F.one_hot(classes[found.objects], logits.shape[1]) * found.shared[:, None]
    total = _BOX * off.sum() + _unsure(objectness, held) + _unsure(logits[found.anchors], target)
    return total, objectness.new_tensor(max(len(found.anchors), 1))


def _unsure(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="sum")
