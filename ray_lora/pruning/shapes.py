"""How large a cut base is: numbers of layers, of feed-forward rows and of groups of heads, alike in all layers, because
the configs of transformers say one number for all.

    sizes = Sizes.of(base.backbone, base.config, kind)
    shapes_within(sizes, keep=0.4)        # Shape(layers=4, rows=613, groups=None), ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ray_lora.errors import RecipeError
from ray_lora.pruning import kinds
from ray_lora.pruning.kinds import Kind, blocks_of, linear

_LEAST = 16  # a feed-forward part with less than this share of its rows is not tried: a layer less is better


@dataclass(frozen=True)
class Shape:
    """So many layers, each of so many feed-forward rows and, where heads can go, groups of heads."""

    layers: int
    rows: int
    groups: int | None = None


@dataclass(frozen=True)
class Sizes:
    """A base's shape, and parameters of one layer without its units, of one row and of one group."""

    whole: Shape
    fixed: int
    row: int
    group: int = 0
    head_dim: int = 0
    heads_in_group: int = 0

    @classmethod
    def of(cls, backbone: nn.Module, config: Any, kind: Kind) -> Sizes:
        """Read from the modules."""
        blocks = blocks_of(backbone, kind)
        first = blocks[0]
        rows = int(getattr(config, kinds.WIDTH))
        row = sum(_numbers(first, name) for name in kind.rows) // rows + linear(first, kind.columns).out_features
        total = sum(parameter.numel() for parameter in first.parameters())
        if kind.attention is None:
            return cls(Shape(len(blocks), rows), total - rows * row, row)
        groups = int(getattr(config, kinds.KEYS))
        heads = kind.attention
        width = linear(first, heads.output)
        group = sum(_numbers(first, name) for name in (heads.queries, *heads.keys_values)) // groups
        group += width.in_features * width.out_features // groups
        dim = linear(first, heads.keys_values[0]).out_features // groups
        share = int(getattr(config, kinds.HEADS)) // groups
        return cls(Shape(len(blocks), rows, groups), total - rows * row - groups * group, row, group, dim, share)

    def parameters(self, shape: Shape) -> int:
        """Of all layers of a shape."""
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


def _within(small: Shape, large: Shape) -> bool:
    """Whether a shape lies in another: it has no more of anything."""
    pairs = [(small.layers, large.layers), (small.rows, large.rows), (small.groups or 0, large.groups or 0)]
    return small != large and all(one <= other for one, other in pairs)
