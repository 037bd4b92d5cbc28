"""The loss of pictures: cross entropy of their pixels, and Dice of their labels (V-Net, arXiv 1606.04797).

picture_losses(logits, targets, 1.0, 1.0)      # [rows]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_lora.tasks.segmentation.masks import IGNORED


def picture_losses(logits: Tensor, targets: Tensor, cross_entropy: float, dice: float) -> Tensor:
    """Of each picture the mean cross entropy of its known pixels, and 1 - Dice, the mean over the labels that it shows;
    both 0 of a picture without a known pixel. [rows]

    Args:
        logits: [rows, labels, height, width].
        targets: classes, [rows, height, width], IGNORED where nobody knows.
        cross_entropy, dice: what each part weighs.
    """
    known = (targets != IGNORED).to(logits)
    total = logits.new_zeros(len(logits))
    if cross_entropy:
        each = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        total = total + cross_entropy * each.sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
    if dice:
        total = total + dice * _dice(logits.softmax(1) * known[:, None], targets)
    return total


def _dice(shares: Tensor, targets: Tensor) -> Tensor:
    """Args: shares: probabilities, 0 where nobody knows."""
    held = torch.zeros_like(shares)
    held.scatter_(1, targets.clamp(max=shares.shape[1] - 1)[:, None], (targets != IGNORED)[:, None].to(shares))
    both, area = (shares * held).sum((2, 3)), held.sum((2, 3))
    shown = (area > 0).to(shares)
    off = 1 - 2 * both / (shares.sum((2, 3)) + area).clamp(min=1)  # one pixel of a label is at least 1 in the sum
    return (off * shown).sum(1) / shown.sum(1).clamp(min=1)
