"""Transforms that move what is in a picture: its boxes and its mask follow.

A matrix takes a place before to the one after, in pixels from the picture's upper left corner. A box is then the least
one around the four corners of the old one, cut at the picture's edges.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from ray_lora.tasks.augmented import Picture
from ray_lora.transform_spec import Needs, TransformSpec

if TYPE_CHECKING:
    from torch import Tensor

Matrix = NDArray[np.float64]  # [3, 3]
_HALF = 0.5  # the middle of a pixel, which is what a sampler counts from


def ascending(given: tuple[float, float]) -> tuple[float, float]:
    if given[0] > given[1]:
        raise ValueError(f"{list(given)} goes down; write the smaller number first")
    return given


Positive = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(ascending)]  # from, to
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, Share], AfterValidator(ascending)]


class Warp(TransformSpec):
    """A picture of the same size, each of whose places comes from another one.

    Attributes:
        min_visible: the part of a box's area that must be left when it is cut at the edges; with less it is dropped.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"pictures"})
    library: ClassVar[str | None] = "kornia"
    min_visible: float = Field(default=0.25, ge=0, le=1)

    @abstractmethod
    def matrix(self, width: int, height: int, draw: np.random.Generator) -> Matrix:
        """Where the places of a picture of this size go."""

    def alter(self, view: Picture, draw: np.random.Generator) -> Picture:
        height, width = view.pixels.shape[-2:]
        matrix = self.matrix(width, height, draw)
        return self._around(replace(view, pixels=_moved(view, matrix), mask=_mask_moved(view, matrix)), matrix)

    def _around(self, view: Picture, matrix: Matrix) -> Picture:
        """The picture with its boxes where they are now."""
        import torch

        if view.boxes is None or view.objects is None:
            return view
        height, width = view.pixels.shape[-2:]
        x, y = view.boxes[:, [0, 2, 2, 0]], view.boxes[:, [1, 1, 3, 3]]
        corners = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.from_numpy(matrix).T  # [objects, 4, 3]
        places = corners[..., :2] / corners[..., 2:]
        whole = torch.cat([places.amin(1), places.amax(1)], 1)
        cut = torch.minimum(whole.clamp(min=0), torch.tensor([width, height, width, height], dtype=whole.dtype))
        left = _area(cut)
        kept = (left > 0) & (left >= self.min_visible * _area(whole))
        return replace(view, boxes=cut[kept], objects=view.objects[kept])


class HorizontalFlip(Warp):
    """Left becomes right."""

    library: ClassVar[str | None] = None
    name: Literal["horizontal_flip"] = "horizontal_flip"
    p: float = Field(default=0.5, ge=0, le=1)

    def matrix(self, width: int, height: int, draw: np.random.Generator) -> Matrix:
        return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])

    def alter(self, view: Picture, draw: np.random.Generator) -> Picture:
        return self._around(_flipped(view, -1), self.matrix(view.pixels.shape[-1], view.pixels.shape[-2], draw))


class VerticalFlip(Warp):
    """Up becomes down."""

    library: ClassVar[str | None] = None
    name: Literal["vertical_flip"] = "vertical_flip"
    p: float = Field(default=0.5, ge=0, le=1)

    def matrix(self, width: int, height: int, draw: np.random.Generator) -> Matrix:
        return np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]])

    def alter(self, view: Picture, draw: np.random.Generator) -> Picture:
        return self._around(_flipped(view, -2), self.matrix(view.pixels.shape[-1], view.pixels.shape[-2], draw))


class Affine(Warp):
    """Turned, scaled, sheared and moved at once, about the picture's middle.

    Attributes:
        degrees: turned by at most so much, either way; shear: its upright lines leaned by at most so many degrees.
        translate: moved by at most this share of its width and its height, either way.
        scale: from and to how many times as large.
    """

    name: Literal["affine"] = "affine"
    degrees: float = Field(default=0.0, ge=0, le=180)
    translate: float = Field(default=0.0, ge=0, le=1)
    scale: Range = (1.0, 1.0)
    shear: float = Field(default=0.0, ge=0, lt=90)

    def matrix(self, width: int, height: int, draw: np.random.Generator) -> Matrix:
        angle, lean = (math.radians(most) * draw.uniform(-1, 1) for most in (self.degrees, self.shear))
        size = draw.uniform(*self.scale)
        shift = np.array([self.translate * side * draw.uniform(-1, 1) for side in (width, height)])
        turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        linear = size * turned @ np.array([[1.0, math.tan(lean)], [0, 1]])
        middle = np.array([width, height]) / 2
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = linear, middle + shift - linear @ middle
        return matrix


class Rotation(Affine):
    """Turned about the picture's middle.

    Attributes:
        degrees: by at most so much, either way.
    """

    name: Literal["rotation"] = "rotation"  # type: ignore[assignment]  # one of an affine's motions
    degrees: float = Field(default=10.0, ge=0, le=180)


class CropAndResize(Warp):
    """A part of the picture, made as large as the whole.

    Attributes:
        scale: from and to which share of the picture's area.
        ratio: from and to how much wider, beside its height, the part is than the whole.
    """

    name: Literal["crop_and_resize"] = "crop_and_resize"
    scale: Shares = (0.5, 1.0)
    ratio: Range = (0.75, 4 / 3)

    def matrix(self, width: int, height: int, draw: np.random.Generator) -> Matrix:
        least, most = map(math.log, self.ratio)
        area, wider = draw.uniform(*self.scale), math.exp(draw.uniform(least, most))
        across, down = min(math.sqrt(area * wider), 1.0), min(math.sqrt(area / wider), 1.0)
        left, top = draw.uniform(0, 1 - across) * width, draw.uniform(0, 1 - down) * height
        return np.array([[1 / across, 0, -left / across], [0, 1 / down, -top / down], [0, 0, 1]])


class Perspective(Warp):
    """As seen from aside: each corner goes inwards.

    Attributes:
        distortion: by at most this share of half the picture's width and height.
    """

    name: Literal["perspective"] = "perspective"
    p: float = Field(default=0.5, ge=0, le=1)
    distortion: float = Field(default=0.3, ge=0, lt=1)

    def matrix(self, width: int, height: int, draw: np.random.Generator) -> Matrix:
        import torch
        from kornia.geometry.transform import get_perspective_transform

        corners = np.array([[0.0, 0], [width, 0], [width, height], [0, height]])
        inwards = np.array([[1.0, 1], [-1, 1], [-1, -1], [1, -1]]) * (width, height) / 2
        moved = corners + inwards * self.distortion * draw.random((4, 2))
        found: Tensor = get_perspective_transform(torch.from_numpy(corners)[None], torch.from_numpy(moved)[None])
        matrix: Matrix = found[0].numpy()
        return matrix


def _flipped(view: Picture, axis: int) -> Picture:
    return replace(view, pixels=view.pixels.flip(axis), mask=view.mask.flip(axis) if view.mask is not None else None)


def _moved(view: Picture, matrix: Matrix) -> Tensor:
    """The pixels, between which is interpolated, on the picture's ground."""
    import torch

    ground = torch.tensor(view.ground)[:, None, None]
    return _sampled(view.pixels - ground, matrix, "bilinear") + ground


def _mask_moved(view: Picture, matrix: Matrix) -> Tensor | None:
    """The mask, each pixel of which has the label of the nearest one."""
    if view.mask is None:
        return None
    least = int(view.mask.min())
    found = _sampled((view.mask - least + 1).double()[None], matrix, "nearest")[0].round().long()  # 0: from outside
    return (found + least - 1).where(found > 0, view.unlabelled)


def _sampled(pixels: Tensor, matrix: Matrix, mode: str) -> Tensor:
    """[channels, height, width] seen through the matrix; 0 comes from outside."""
    import torch
    from kornia.geometry.transform import warp_perspective

    shift = np.array([[1.0, 0, _HALF], [0, 1, _HALF], [0, 0, 1]])
    of_middles = torch.from_numpy(np.linalg.inv(shift) @ matrix @ shift).to(pixels.dtype)
    height, width = pixels.shape[-2:]
    found: Tensor = warp_perspective(pixels[None], of_middles[None], (height, width), mode, align_corners=True)
    return found[0]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
