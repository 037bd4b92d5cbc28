"""Pictures as YOLOX was trained on them: scaled into the upper left corner of its input, the rest grey.

    pixels, extent = Letterbox((416, 416))(picture)     # uint8 [3, 416, 416]; (width, height) that the picture takes

It knows pixels, no boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy
import torch
from torch import Tensor

from ray_lora.bases.yolox.config import STRIDES

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Letterbox:
    """What a base's folder has as its processor.

    Attributes:
        size: height and width of the network's input; strides: input pixels a cell, of each of its levels.
    """

    size: tuple[int, int]
    channel_order: Literal["bgr", "rgb"] = "bgr"
    strides: tuple[int, ...] = STRIDES
    ground: ClassVar[int] = 114  # of the rest, in all channels: the public training's

    def __call__(self, picture: Image) -> tuple[Tensor, tuple[int, int]]:
        """The input of an RGB picture, uint8 [3, height, width], and the width and height that it takes of it.

        Scaled without anti-aliasing, as OpenCV's INTER_LINEAR does in the public training.
        """
        height, width = self.size
        scale = min(height / picture.height, width / picture.width)
        wide, high = max(int(picture.width * scale), 1), max(int(picture.height * scale), 1)
        pixels = torch.from_numpy(numpy.array(picture, numpy.uint8)).permute(2, 0, 1)[None]
        scaled = torch.nn.functional.interpolate(pixels, (high, wide), mode="bilinear", align_corners=False)[0]
        boxed = torch.full((3, height, width), self.ground, dtype=torch.uint8)
        boxed[:, :high, :wide] = scaled.flip(0) if self.channel_order == "bgr" else scaled
        return boxed, (wide, high)
