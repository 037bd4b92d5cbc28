"""CRAFT: the sixteen-layer VGG with batch norms, and a U-Net's way up, made to find where letters stand.

    Craft(2)(torch.randn(2, 3, 96, 96))      # scores, [2, 2, 48, 48]

Baek, Lee, Han, Yun and Lee 2019, "Character Region Awareness for Text Detection" (arXiv 1904.01941). Modules and their
names are those of the authors' `CRAFT`, so that their checkpoint loads. It knows tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# of VGG's convolutions, by their places in torchvision's list: where the authors cut it, before a ReLU each time; and
# which ones read maps of half the size
_SLICES = ((0, 3, 7, 10), (14, 17), (20, 24, 27), (30, 34, 37))
_HALVED = (7, 14, 24, 34)
_LAST = 37


class Craft(nn.Module):
    """Args: width: channels of the first convolution; all others follow from it. 64 is the authors'."""

    def __init__(self, labels: int, width: int = 64) -> None:
        super().__init__()
        self.basenet = _Vgg(width)
        self.upconv1 = _Double(16 * width, 8 * width, 4 * width)
        self.upconv2 = _Double(8 * width, 4 * width, 2 * width)
        self.upconv3 = _Double(4 * width, 2 * width, width)
        self.upconv4 = _Double(2 * width, width, width // 2)
        thin, thinner = width // 2, width // 4
        self.conv_cls = nn.Sequential(
            nn.Conv2d(thin, thin, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(thin, thin, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(thin, thinner, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(thinner, thinner, 1),
            nn.ReLU(),
            nn.Conv2d(thinner, labels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[rows, 3, height, width], both multiples of 16 -> [rows, labels, height / 2, width / 2]"""
        *fine, coarse, deep = self.basenet(x)
        y = self.upconv1(torch.cat([deep, coarse], 1))
        for up, beside in zip((self.upconv2, self.upconv3, self.upconv4), reversed(fine), strict=True):
            y = nn.functional.interpolate(y, size=beside.shape[2:], mode="bilinear", align_corners=False)
            y = up(torch.cat([y, beside], 1))
        scores: Tensor = self.conv_cls(y)
        return scores


class _Vgg(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        into, out = 3, width
        for number, places in enumerate(_SLICES, 1):
            layers = nn.ModuleDict()
            for at in places:
                out = min(2 * out, 8 * width) if at in _HALVED else out
                layers[str(at)], layers[str(at + 1)] = nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out)
                into = out
            self.add_module(f"slice{number}", layers)
        self.slice5 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(into, 2 * into, 3, padding=6, dilation=6),
            nn.Conv2d(2 * into, 2 * into, 1),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of 1/2, 1/4, 1/8 and 1/16 of the input's sides, and the deepest, of 1/16 too. The first three are what
        the ReLU behind their slice gives: the authors' ReLUs, in place, change the maps that they have kept."""
        maps = []
        for number, places in enumerate(_SLICES, 1):
            layers = self.get_submodule(f"slice{number}")
            for at in places:
                x = nn.functional.max_pool2d(x, 2) if at in _HALVED else x
                x = layers.get_submodule(str(at + 1))(layers.get_submodule(str(at))(x))
                x = x if at == _LAST else x.relu()
            maps.append(x)
        return [*maps, self.slice5(x)]


class _Double(nn.Module):
    """Two convolutions, the first of what comes from below and what stands beside it, `into + middle` channels."""

    def __init__(self, into: int, middle: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(into + middle, middle, 1),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, out, 3, padding=1),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y
