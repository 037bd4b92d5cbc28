"""Transforms that change what is seen in a picture and leave everything where it is: boxes and masks stay.

Factors are those of torchvision's transforms of these names, by kornia.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from ray_lora.augmentation.geometry import Range, Shares
from ray_lora.tasks.augmented import Picture
from ray_lora.transform_spec import Needs, TransformSpec

if TYPE_CHECKING:
    from torch import Tensor


class ColorJitter(TransformSpec):
    """Brightness, contrast, saturation and hue, in this order.

    Attributes:
        brightness, contrast, saturation: each is multiplied by between 1 - this (not below 0) and 1 + this.
        hue: turned by at most this part of the circle of colours, either way.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"pictures", "colours"})
    library: ClassVar[str | None] = "kornia"
    name: Literal["color_jitter"] = "color_jitter"
    brightness: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0)
    saturation: float = Field(default=0.0, ge=0)
    hue: float = Field(default=0.0, ge=0, le=0.5)

    def alter(self, view: Picture, draw: np.random.Generator) -> Picture:
        from kornia import enhance

        changes = (
            (self.brightness, enhance.adjust_brightness_accumulative),
            (self.contrast, enhance.adjust_contrast_with_mean_subtraction),
            (self.saturation, enhance.adjust_saturation_with_gray_subtraction),
        )
        pixels = view.pixels.clamp(0, 1)[None]
        for most, change in changes:
            factor = draw.uniform(max(0.0, 1 - most), 1 + most)  # drawn in any case: others stay what they are
            pixels = change(pixels, factor) if most else pixels
        turn = 2 * math.pi * self.hue * draw.uniform(-1, 1)
        return replace(view, pixels=(enhance.adjust_hue(pixels, turn) if self.hue else pixels)[0])


class Grayscale(TransformSpec):
    """Without colours, in as many channels."""

    needs: ClassVar[frozenset[Needs]] = frozenset({"pictures", "colours"})
    library: ClassVar[str | None] = "kornia"
    name: Literal["grayscale"] = "grayscale"
    p: float = Field(default=0.1, ge=0, le=1)

    def alter(self, view: Picture, draw: np.random.Generator) -> Picture:
        from kornia.color import rgb_to_grayscale

        grey: Tensor = rgb_to_grayscale(view.pixels)
        return replace(view, pixels=grey.expand_as(view.pixels).contiguous())


class Blur(TransformSpec):
    """As by a lens out of focus: Gaussian.

    Attributes:
        sigma: from and to how many pixels wide.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"pictures"})
    library: ClassVar[str | None] = "kornia"
    name: Literal["blur"] = "blur"
    p: float = Field(default=0.5, ge=0, le=1)
    sigma: Range = (0.1, 2.0)

    def alter(self, view: Picture, draw: np.random.Generator) -> Picture:
        from kornia.filters import gaussian_blur2d

        sigma = draw.uniform(*self.sigma)
        side = 2 * math.ceil(2 * sigma) + 1
        blurred: Tensor = gaussian_blur2d(view.pixels[None], (side, side), (sigma, sigma), "replicate")
        return replace(view, pixels=blurred[0])


class Noise(TransformSpec):
    """Gaussian noise on every pixel and channel.

    Attributes:
        std: its standard deviation, where white is 1.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"pictures"})
    name: Literal["noise"] = "noise"
    p: float = Field(default=0.5, ge=0, le=1)
    std: float = Field(default=0.05, gt=0)

    def alter(self, view: Picture, draw: np.random.Generator) -> Picture:
        import torch

        noise = torch.from_numpy(draw.standard_normal(tuple(view.pixels.shape), dtype=np.float32))
        return replace(view, pixels=(view.pixels + self.std * noise).clamp(0, 1))


class Erasing(TransformSpec):
    """A rectangle is covered by the picture's ground (arXiv 1708.04896). What is below it is still there: boxes and
    masks stay.

    Attributes:
        scale: from and to which share of the picture's area.
        ratio: from and to how much wider, beside its height, the rectangle is than the picture.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"pictures"})
    name: Literal["erasing"] = "erasing"
    p: float = Field(default=0.5, ge=0, le=1)
    scale: Shares = (0.02, 0.2)
    ratio: Range = (0.5, 2.0)

    def alter(self, view: Picture, draw: np.random.Generator) -> Picture:
        import torch

        height, width = view.pixels.shape[-2:]
        least, most = map(math.log, self.ratio)
        area, wider = draw.uniform(*self.scale), math.exp(draw.uniform(least, most))
        across = min(round(math.sqrt(area * wider) * width), width)
        down = min(round(math.sqrt(area / wider) * height), height)
        left, top = draw.integers(0, width - across, endpoint=True), draw.integers(0, height - down, endpoint=True)
        pixels = view.pixels.clone()
        pixels[:, top : top + down, left : left + across] = torch.tensor(view.ground)[:, None, None]
        return replace(view, pixels=pixels)
