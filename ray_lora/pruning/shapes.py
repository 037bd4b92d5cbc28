"""How large a cut base is: numbers of layers, of feed-forward rows and of groups of heads, alike in all layers, because
the configs of transformers say one number for all. Where a config says channels for each block, all blocks lose the
same share, down to multiples of 8, which products like.

    sizes = Sizes.of(base.backbone, base.config, kind)
    shapes_within(sizes, keep=0.4)        # Shape(layers=4, rows=613, groups=None), ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ray_lora.errors import RecipeError
from ray_lora.pruning import kinds
from ray_lora.pruning.kinds import Kind, blocks_of, weight

_EVEN = 8  # channels
_LEAST = 16  # a feed-forward part with less than this share of its rows is not tried: a layer less is better


@dataclass(frozen=True)
class Shape:
    """So many layers, each of so many feed-forward rows and, where heads can go, groups of heads; or `channels` of each
    layer, whose sum is `rows`."""

    layers: int
    rows: int
    groups: int | None = None
    channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """A base's shape, and parameters of one layer without its units, of one row and of one group; where channels are
    counted, `fixed` is that of all layers, and `channel` that of a channel of each."""

    whole: Shape
    fixed: int
    row: int
    group: int = 0
    head_dim: int = 0
    heads_in_group: int = 0
    channel: tuple[int, ...] = ()

    @classmethod
    def of(cls, backbone: nn.Module, config: Any, kind: Kind) -> Sizes:
        """Read from the modules."""
        blocks = blocks_of(backbone, kind)
        if kind.channels:
            return cls._of_channels(blocks, kind)
        first = blocks[0]
        rows = int(getattr(config, kinds.WIDTH))
        row = sum(_numbers(first, name) for name in kind.rows) // rows + len(weight(first, kind.columns))
        total = sum(parameter.numel() for parameter in first.parameters())
        if kind.attention is None:
            return cls(Shape(len(blocks), rows), total - rows * row, row)
        groups = int(getattr(config, kinds.KEYS))
        heads = kind.attention
        group = sum(_numbers(first, name) for name in (heads.queries, *heads.keys_values)) // groups
        group += weight(first, heads.output).numel() // groups
        dim = len(weight(first, heads.keys_values[0])) // groups
        share = int(getattr(config, kinds.HEADS)) // groups
        return cls(Shape(len(blocks), rows, groups), total - rows * row - groups * group, row, group, dim, share)

    @property
    def units(self) -> tuple[int, ...]:
        """Rows, or channels, of each layer."""
        return self.whole.channels or (self.whole.rows,) * self.whole.layers

    @classmethod
    def _of_channels(cls, blocks: Sequence[nn.Module], kind: Kind) -> Sizes:
        channels, each = [], []
        for block in blocks:
            units = len(weight(block, kind.rows[0])) if hasattr(block, kind.rows[0]) else 0
            inside = sum(_numbers(block, name) for name in (*kind.rows, *kind.beside)) // units if units else 0
            channels.append(units)
            each.append(inside + len(weight(block, kind.columns)) if units else 0)
        total = sum(parameter.numel() for block in blocks for parameter in block.parameters())
        fixed = total - sum(count * size for count, size in zip(channels, each, strict=True))
        return cls(Shape(len(blocks), sum(channels), None, tuple(channels)), fixed, 0, channel=tuple(each))

    def parameters(self, shape: Shape) -> int:
        """Of all layers of a shape."""
        if shape.channels:
            return self.fixed + sum(count * size for count, size in zip(shape.channels, self.channel, strict=True))
        return shape.layers * (self.fixed + shape.rows * self.row + (shape.groups or 0) * self.group)


def _numbers(block: nn.Module, name: str) -> int:
    return sum(parameter.numel() for parameter in block.get_submodule(name).parameters())


def shapes_within(sizes: Sizes, keep: float, layers: int | None = None) -> list[Shape]:
    """Every number of layers, and of groups, with as many rows as `keep` leaves them: the largest of their kind.

    Args:
        keep: the share of the layers' parameters that may stay, above 0 and at most 1.
        layers: only shapes of so many layers.

    Raises:
        RecipeError: a number that is not allowed, or so few parameters that no shape fits.
    """
    whole = sizes.whole
    if whole.channels:
        return [_narrower(sizes, keep, layers)]
    if layers is not None and not 1 <= layers <= whole.layers:
        raise RecipeError(f"--layers {layers} of a base of {whole.layers} layers; give 1 to {whole.layers}")
    if keep == 1 and layers in (None, whole.layers):
        return [whole]
    most = keep * sizes.parameters(whole)
    found = []
    for count in range(1, whole.layers + 1) if layers is None else (layers,):
        for groups in [None] if whole.groups is None else range(1, whole.groups + 1):
            rest = most / count - sizes.fixed - (groups or 0) * sizes.group
            rows = min(whole.rows, int(rest // sizes.row))
            if rows * _LEAST >= whole.rows:
                found.append(Shape(count, rows, groups))
    if not found:
        least = sizes.parameters(Shape(layers or 1, -(-whole.rows // _LEAST), None if whole.groups is None else 1))
        raise RecipeError(
            f"--keep {keep} leaves too little of this base for {layers or 1} layers; give at least "
            f"{least / sizes.parameters(whole):.3f}" + (", or fewer --layers" if layers not in (None, 1) else "")
        )
    return [shape for shape in found if not any(_within(shape, other) for other in found)]


def _narrower(sizes: Sizes, keep: float, layers: int | None) -> Shape:
    """The same share of the channels of every block."""
    whole = sizes.whole
    if layers is not None:
        raise RecipeError("--layers is for bases whose layers are alike; leave it out, all blocks of this one stay")
    if keep == 1:
        return whole
    total = sizes.parameters(whole)
    share = (keep * total - sizes.fixed) / (total - sizes.fixed)
    least = (sizes.fixed + (total - sizes.fixed) / _LEAST) / total
    if share * _LEAST < 1:
        raise RecipeError(f"--keep {keep} leaves too little of this base; give at least {least:.3f}")
    channels = tuple(max(int(count * share) // _EVEN * _EVEN, min(count, _EVEN)) for count in whole.channels)
    return Shape(whole.layers, sum(channels), None, channels)


def _within(small: Shape, large: Shape) -> bool:
    """Whether a shape lies in another: it has no more of anything."""
    pairs = [(small.layers, large.layers), (small.rows, large.rows), (small.groups or 0, large.groups or 0)]
    return small != large and all(one <= other for one, other in pairs)
