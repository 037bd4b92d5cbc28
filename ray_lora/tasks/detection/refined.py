"""RT-DETR, each layer of whose decoder says boxes and classes (Zhao et al. 2023, arXiv 2304.08069), with the loss that
transformers has for it: varifocal loss, L1 and generalised IoU of every layer, each picture for itself.

What transformers adds beside is left out: losses of what chooses queries, which goes by the base's classes and not by
an adapter's, and queries that are drawn at random for a whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ray_lora.tasks.detection.queried import Queried, finite
from ray_lora.tasks.detection.way import Found

if TYPE_CHECKING:
    from ray_lora.bases.queries import Queries


class Refined(Queried):
    """An RT-DETR's way (`Way`). Its terms are pictures."""

    def __init__(self, processor: Any, queries: Queries, labels: Sequence[str]) -> None:
        super().__init__(processor, queries, labels)
        self._layers = slice(None) if queries.auxiliary_loss else slice(-1, None)

    def _loss(self, logits: Tensor, boxes: Tensor, corners: Tensor, classes: Tensor) -> Tensor:
        """One picture's: logits [layers, queries, labels], boxes [layers, queries, 4]."""
        from transformers.loss.loss_rt_detr import RTDetrLoss

        if not bool((logits.isfinite().all() & boxes.isfinite().all()).item()):
            return (logits.sum() + boxes.sum()) * math.nan
        criterion = RTDetrLoss(self._config).to(logits.device)
        targets = [self._target(corners, classes, boxes)]
        told = [
            {"logits": one[None], "pred_boxes": places[None]}
            for one, places in zip(logits[self._layers], boxes[self._layers], strict=True)
        ]
        if not len(corners):  # transformers' fails where no picture of a batch has an object
            nothing = [(torch.zeros(0, dtype=torch.long),) * 2]
            losses = [criterion.get_loss("vfl", one, targets, nothing, 1.0) for one in told]
            return torch.stack([one["loss_vfl"] * criterion.weight_dict["loss_vfl"] for one in losses]).sum()
        found: dict[str, Tensor] = criterion({**told[-1], "auxiliary_outputs": told[:-1]}, targets)
        return torch.stack(list(found.values())).sum()

    def found(self, outputs: Any) -> Found:
        """As many answers as queries, each of a query and a label: a query may be two objects' of two labels."""
        logits, boxes = self._read(outputs)
        scores = logits[:, -1].sigmoid()
        queries, labels = scores.shape[1:]
        best, at = scores.flatten(1).topk(queries)
        alone = scores.new_zeros(len(scores), queries, labels)
        alone.scatter_(2, (at % labels)[..., None], best[..., None])
        places = boxes[:, -1].gather(1, (at // labels)[..., None].expand(-1, -1, 4))
        return Found(alone, self._corners(places), finite(logits, boxes))
