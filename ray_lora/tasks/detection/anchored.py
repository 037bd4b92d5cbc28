"""Anchor-free detectors whose plain class gives logits, objectness and boxes of every anchor: YOLOX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ray_lora.tasks.detection.geometry import Grid, grid_of
from ray_lora.tasks.detection.losses import picture_loss
from ray_lora.tasks.detection.way import Found

if TYPE_CHECKING:
    from PIL.Image import Image

_WHITE = 255


class Anchored:
    """A YOLOX's way (`Way`). Its terms are the anchors that learn an object."""

    iou, masked = 0.65, False

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.size: tuple[int, int] = tuple(processor.size)
        self.ground: tuple[float, ...] = (processor.ground / _WHITE,) * 3
        self.anchors = len(grid_of(self.size, tuple(processor.strides)).strides)

    def pixels(self, picture: Image) -> tuple[Tensor, tuple[int, int]]:
        """uint8, from 0 to 255."""
        found: tuple[Tensor, tuple[int, int]] = self._processor(picture)
        return found

    def shown(self, pixels: Tensor) -> Tensor:
        return self._as_rgb(pixels).float() / _WHITE

    def of_shown(self, pixels: Tensor) -> Tensor:
        return self._as_rgb((pixels * _WHITE).round().clamp(0, _WHITE).to(torch.uint8))

    def _as_rgb(self, pixels: Tensor) -> Tensor:
        """Of the base's order of channels, and back."""
        return pixels.flip(0) if self._processor.channel_order == "bgr" else pixels

    def losses(self, outputs: Any, objects: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """In float32 at least, in which a pixel of a large picture is one."""
        logits, objectness, boxes, grid = self._read(outputs)
        found = [
            picture_loss(logits[row], objectness[row], boxes[row], corners.to(boxes), classes.to(boxes.device), grid)
            for row, (corners, classes) in enumerate(objects)
        ]
        sums, counts = zip(*found, strict=True)
        return torch.stack(sums), torch.stack(counts)

    def found(self, outputs: Any) -> Found:
        """A score is the objectness times the label's."""
        logits, objectness, boxes, _ = self._read(outputs)
        scores = logits.sigmoid() * objectness.sigmoid()[..., None]
        rows = range(len(scores))
        finite = [bool(all(values[row].isfinite().all() for values in outputs.values())) for row in rows]
        return Found(scores, boxes, finite)

    def soft(self, outputs: Any) -> Tensor:
        """Logits of labels and objectness, [rows, anchors, labels + 1]."""
        logits, objectness, _, _ = self._read(outputs)
        return torch.cat([logits, objectness[..., None]], -1)

    def _read(self, outputs: Any) -> tuple[Tensor, Tensor, Tensor, Grid]:
        """Logits, objectness and boxes as corners in the input, and the grid of their anchors."""
        wide = torch.promote_types(outputs["boxes"].dtype, torch.float32)
        logits, objectness, raw = (outputs[name].to(wide) for name in ("logits", "objectness", "boxes"))
        grid = grid_of(self.size, tuple(self._processor.strides)).to(raw)
        return logits, objectness, grid.boxes(raw), grid
