"""Detectors of transformers whose plain class gives logits and boxes of a number of queries: DETR (Carion et al. 2020,
arXiv 2005.12872), Table Transformer, which is a DETR, and YOLOS (Fang et al. 2021, arXiv 2106.00666), with the loss of
DETR that transformers has for them.

That loss divides what classes cost by other numbers than what boxes cost, both of its whole batch. So that a row's loss
is its own, it is taken of each picture alone, and an adapter's is the mean over its pictures: what a loop with one
picture a pass and accumulated gradients computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_lora.errors import RecipeError
from ray_lora.tasks.detection.way import Found

if TYPE_CHECKING:
    from PIL.Image import Image

    from ray_lora.bases.queries import Queries

_NORMALISED = ("image_mean", "image_std")


class Queried:
    """A YOLOS's or DETR's way (`Way`). Its terms are pictures.

    Pictures are scaled into one size, the upper left part of the base's own, so that one looks the same in any company.

    Raises:
        RecipeError: the base's config asks for losses of each layer, which are not computed here, or its image
            processor does not say a size.
    """

    iou = 1.0  # each object is one query's, so no two answers are of one

    def __init__(self, processor: Any, queries: Queries, labels: Sequence[str]) -> None:
        if queries.auxiliary_loss and not queries.refines:
            raise RecipeError(
                "this base's config has auxiliary_loss: true, and losses of each layer are not computed here; set it "
                "false in its config.json"
            )
        if queries.image_size is None:
            raise RecipeError(
                "this base's preprocessor_config.json says no size of pictures; give it one, such as "
                '"size": {"shortest_edge": 800, "longest_edge": 1333}'
            )
        self._processor, self._labels = processor, len(labels)
        self._fills = queries.fills
        self.size, self.masked = queries.image_size, queries.masked
        self.ground = tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0)  # what zero is
        self._config = SimpleNamespace(num_labels=len(labels), auxiliary_loss=queries.auxiliary_loss, **queries.loss)

    def pixels(self, picture: Image) -> tuple[Tensor, tuple[int, int]]:
        """As the base's own processor scales, normalises and pads it."""
        height, width = self.size
        most = "" if self._fills else "max_"
        found = self._processor(
            [picture],
            size={f"{most}height": height, f"{most}width": width},
            pad_size={"height": height, "width": width},
            do_pad=True,
            return_tensors="pt",
        )
        mask = found["pixel_mask"][0]
        return found["pixel_values"][0], (int(mask[0].sum()), int(mask[:, 0].sum()))

    def shown(self, pixels: Tensor) -> Tensor:
        mean, std = self._levels()
        return pixels * std + mean

    def of_shown(self, pixels: Tensor) -> Tensor:
        mean, std = self._levels()
        return (pixels - mean) / std

    def _levels(self) -> tuple[Tensor, Tensor]:
        if not self._processor.do_normalize:
            return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        mean, std = (torch.tensor(getattr(self._processor, name))[:, None, None] for name in _NORMALISED)
        return mean, std

    def losses(self, outputs: Any, objects: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        logits, boxes = self._read(outputs)
        sums = [self._loss(logits[row], boxes[row], *mine) for row, mine in enumerate(objects)]
        return torch.stack(sums), logits.new_ones(len(sums))

    def _loss(self, logits: Tensor, boxes: Tensor, corners: Tensor, classes: Tensor) -> Tensor:
        """One picture's: logits [queries, labels + 1], boxes [queries, 4], corners [objects, 4] in input pixels."""
        from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

        if not bool((logits.isfinite().all() & boxes.isfinite().all()).item()):
            return (logits.sum() + boxes.sum()) * math.nan  # transformers' would stop everybody's step
        if not len(corners):  # transformers' fails where no picture of a batch has an object
            nothing = torch.full((len(logits),), self._labels, device=logits.device)
            return F.cross_entropy(logits, nothing)  # all weigh alike
        target = self._target(corners, classes, boxes)
        # given a tensor for its device, the class's weights of classes have its type too
        loss: Tensor = ForObjectDetectionLoss(logits[None], [target], logits, boxes[None], self._config)[0]
        return loss

    def _target(self, corners: Tensor, classes: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """A picture's objects as transformers' losses take them."""
        size = corners.new_tensor([self.size[1], self.size[0]])
        middle, extent = (corners[:, :2] + corners[:, 2:]) / 2 / size, (corners[:, 2:] - corners[:, :2]) / size
        return {"class_labels": classes.to(boxes.device), "boxes": torch.cat([middle, extent], 1).to(boxes)}

    def found(self, outputs: Any) -> Found:
        """A score is the label's share among all labels and none."""
        logits, boxes = self._read(outputs)
        return Found(logits.softmax(-1)[..., :-1], self._corners(boxes), finite(logits, boxes))

    def _corners(self, boxes: Tensor) -> Tensor:
        """In input pixels."""
        size = boxes.new_tensor([self.size[1], self.size[0]])
        middle, half = boxes[..., :2] * size, boxes[..., 2:] * size / 2
        return torch.cat([middle - half, middle + half], -1)

    def _read(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Logits and boxes (middle, width and height in shares of the input) in float32 at least."""
        wide = torch.promote_types(outputs["pred_boxes"].dtype, torch.float32)
        return outputs["logits"].to(wide), outputs["pred_boxes"].to(wide)


def finite(logits: Tensor, boxes: Tensor) -> list[bool]:
    """Of each row, whether all that was said of it are numbers."""
    found: list[bool] = (logits.isfinite().flatten(1).all(1) & boxes.isfinite().flatten(1).all(1)).tolist()
    return found
