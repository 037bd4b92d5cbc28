"""A base by a builder: a small convolutional network with weights of a fixed seed, and the class that finds boxes.

It knows nothing of adapters. A picture is pixel_values [3, 32, 32]; its answer is a grid of 4 x 4 cells, each with how
sure it is to hold a box's middle and that box as shares of the picture: middle (x, y), width, height.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ray_lora import BuildContext, Built
from ray_lora.bases.plain import HeadSpec

GRID = 4
WIDTH = 16


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.middle = nn.Conv2d(8, WIDTH, 3, stride=2, padding=1)
        self.last = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:  # [rows, 3, 32, 32] -> [rows, WIDTH, GRID, GRID]
        hidden = torch.relu(self.norm(self.stem(pixel_values)))
        return torch.relu(self.last(torch.relu(self.middle(hidden))))


class Finder(nn.Module):
    """The plain class: a head of convolution and norm, and two outputs."""

    def __init__(self, backbone: nn.Module, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.mix = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.even = nn.GroupNorm(4, WIDTH)
        self.find = nn.Conv2d(WIDTH, outputs, 1)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        cells = self.find(torch.relu(self.even(self.mix(self.backbone(pixel_values)))))  # [rows, 5, GRID, GRID]
        cells = cells.flatten(2).transpose(1, 2)
        return {"sure": cells[..., 0], "boxes": cells[..., 1:].sigmoid()}


def build(context: BuildContext) -> Built:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        backbone = Backbone()
    backbone = backbone.to(context.device, context.dtype)

    def plain(spec: HeadSpec) -> nn.Module:
        return Finder(backbone, spec.num_labels)

    def examples(sizes: Sequence[int], seed: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return [{"pixel_values": torch.rand(3, 8 * GRID, 8 * GRID, generator=generator)} for _ in sizes]

    return Built(backbone, "backbone", plain, examples)
