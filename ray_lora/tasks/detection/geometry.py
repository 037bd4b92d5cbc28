"""Anchors on the grids of a detector's levels, and boxes as corners (x, y, x, y) in input pixels.

grid = grid_of((416, 416), (8, 16, 32))     # 3,549 anchors
boxes = grid.boxes(raw)                     # [..., anchors, 4]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_NOTHING = 1e-16  # an area that is none
_WIDEST = 8.0  # the logarithm of 2,981 cells: wider than any picture, and its square is a number


@dataclass(frozen=True)
class Grid:
    """Anchors, level by level and row by row.

    Attributes:
        cells: the upper left corner of each anchor's cell in cells of its level, [anchors, 2] (x, y).
        strides: input pixels a cell, [anchors].
    """

    cells: Tensor
    strides: Tensor

    @property
    def middles(self) -> Tensor:
        """Of each anchor's cell, in input pixels, [anchors, 2]."""
        return (self.cells + 0.5) * self.strides[:, None]

    def boxes(self, raw: Tensor) -> Tensor:
        """Corners from [..., anchors, 4]: the middle in cells from the cell's corner, and the logarithm of width and
        height in cells (YOLOX, arXiv 2107.08430, section 2)."""
        strides = self.strides[:, None]
        middle, half = (raw[..., :2] + self.cells) * strides, raw[..., 2:].clamp(max=_WIDEST).exp() * strides / 2
        return torch.cat([middle - half, middle + half], -1)

    def to(self, like: Tensor) -> Grid:
        return Grid(self.cells.to(like), self.strides.to(like))


@lru_cache(maxsize=8)
def grid_of(size: tuple[int, int], strides: tuple[int, ...]) -> Grid:
    """The anchors of an input of this height and width."""
    levels = []
    with torch.inference_mode(False):  # what is kept serves training too
        for stride in strides:
            y, x = torch.meshgrid(torch.arange(size[0] // stride), torch.arange(size[1] // stride), indexing="ij")
            levels.append(torch.stack([x, y, torch.full_like(x, stride)], -1).flatten(0, 1))
        anchors = torch.cat(levels)
        return Grid(anchors[:, :2].float(), anchors[:, 2].float())


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Shared area over joint area of boxes [..., 4], which are broadcast against each other."""
    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    area = shared.prod(-1)
    both = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1)
    return area / (both - area).clamp(min=_NOTHING)


def keep_best(boxes: Tensor, labels: Tensor, most_shared: float, top_k: int | None = None) -> Tensor:
    """Which boxes are left, [kept], when each one takes those behind it with it that have its label and share more
    than `most_shared` of their joint area (greedy non-maximum suppression).

    Args:
        boxes: [n, 4], best first. labels: [n].
        top_k: stop after so many.
    """
    left = torch.arange(len(boxes))
    if most_shared >= 1:
        return left[:top_k]
    kept: list[Tensor] = []
    while len(left) and (top_k is None or len(kept) < top_k):
        first, left = left[0], left[1:]
        kept.append(first)
        same = labels[left] == labels[first]
        left = left[~(same & (iou(boxes[left], boxes[first]) > most_shared))]
    return torch.stack(kept) if kept else left


def in_input(boxes: Sequence[Sequence[float]], extent: Sequence[int], inside: Sequence[int]) -> Tensor:
    """[x, y, width, height] in a picture's pixels as corners in the input's, [boxes, 4] float64.

    Args:
        extent: width and height of the picture; inside: those that it takes of the input.
    """
    given = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    scale = torch.tensor(inside, dtype=torch.float64) / torch.tensor(extent, dtype=torch.float64)
    return torch.cat([given[:, :2], given[:, :2] + given[:, 2:]], 1) * scale.repeat(2)


def in_picture(boxes: Tensor, extent: Sequence[int], inside: Sequence[int]) -> Tensor:
    """Corners in the input as corners in the picture, cut at its edges."""
    size = torch.tensor(extent).to(boxes)
    scaled = boxes * (size / torch.tensor(inside).to(boxes)).repeat(2)
    return torch.minimum(scaled.clamp(min=0), size.repeat(2))
