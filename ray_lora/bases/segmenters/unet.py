"""A small U-Net in plain PyTorch: two convolutions a level, down by pooling, up by transposed convolutions.

    Unet((16, 32, 64), 3)(torch.randn(2, 3, 96, 96))      # logits, [2, 3, 96, 96]

Ronneberger et al. 2015 (arXiv 1505.04597), with padding, so that height and width stay, and batch norms. It knows
tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Unet(nn.Module):
    """Args: channels: of each level, the finest first."""

    def __init__(self, channels: Sequence[int], labels: int) -> None:
        super().__init__()
        self.inward = _Pair(3, channels[0])
        self.down = nn.ModuleList(_Pair(fine, coarse) for fine, coarse in pairwise(channels))
        self.up = nn.ModuleList(_Up(coarse, fine) for coarse, fine in pairwise(reversed(channels)))
        self.final = nn.Conv2d(channels[0], labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, 3, height, width] -> [rows, labels, height, width]"""
        levels = [self.inward(x)]
        for pair in self.down:
            levels.append(pair(nn.functional.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for up in self.up:
            x = up(x, levels.pop())
        logits: Tensor = self.final(x)
        return logits


class _Pair(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        y: Tensor = self.bn2(self.conv2(x)).relu()
        return y


class _Up(nn.Module):
    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(coarse, fine, 2, stride=2)
        self.pair = _Pair(2 * fine, fine)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        y: Tensor = self.pair(torch.cat([self.deconv(x), beside], 1))
        return y
