"""Pictures as a segmenter of ours reads them: scaled into the upper left corner of its input, the rest mean.

    pixels, inside = Frame((96, 96))(picture)     # uint8 [3, 96, 96]; (width, height) that the picture takes of it

It knows pixels, no masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Frame:
    """What a base's folder has as its processor.

    Attributes:
        size: height and width of the network's input; cell: both are multiples of it.
        fill: red, green and blue around a picture, from 0 to 255.
    """

    size: tuple[int, int]
    cell: int = 8
    fill: tuple[int, int, int] = (124, 116, 104)

    def __call__(self, picture: Image) -> tuple[Tensor, tuple[int, int]]:
        """The input of an RGB picture, uint8 [3, height, width], and the width and height that it takes of it."""
        from PIL import Image

        height, width = self.size
        scale = min(height / picture.height, width / picture.width)
        wide, high = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
        fitting = picture if picture.size == (wide, high) else picture.resize((wide, high), Image.Resampling.BILINEAR)
        framed = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None].repeat(1, height, width)
        framed[:, :high, :wide] = torch.from_numpy(numpy.array(fitting, numpy.uint8)).permute(2, 0, 1)
        return framed, (wide, high)
