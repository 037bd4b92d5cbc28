"""Which units of a base stay: the most important ones of the shape that keeps the most importance.

plan = best_plan(worth, sizes, shapes_within(sizes, 0.4))
plan.layers, plan.share         # (0, 1, 2, 3), 0.649
random_plan(sizes, plan.shape, seed=0)        # the same shape, drawn
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_lora.pruning.importance import Importance
from ray_lora.pruning.shapes import Shape, Sizes


@dataclass(frozen=True)
class Plan:
    """What stays, by the base's own numbers in ascending order.

    Attributes:
        layers: of the base. rows, groups: of each of them, [rows] or [channels], and [groups]; `groups` is empty where
            heads stay.
        share: of the base's importance that stays; None where none was asked for.
    """

    shape: Shape
    layers: tuple[int, ...]
    rows: tuple[Tensor, ...]
    groups: tuple[Tensor, ...] = ()
    share: float | None = None


def best_plan(worth: Importance, sizes: Sizes, shapes: Sequence[Shape]) -> Plan:
    """Of all shapes the one whose most important units hold the most; of equal ones the first."""
    return max((_plan(worth, sizes, shape) for shape in shapes), key=lambda plan: plan.share or 0.0)


def _plan(worth: Importance, sizes: Sizes, shape: Shape) -> Plan:
    """Of each layer its most important units, and of layers those that hold the most with these units alone."""
    counts = shape.channels or (shape.rows,) * len(worth.rows)
    rows = [values.topk(count).indices.sort().values for values, count in zip(worth.rows, counts, strict=True)]
    groups = [values.topk(shape.groups or 0).indices.sort().values for values in worth.groups]
    held = []
    for layer, total in enumerate(worth.layers):
        lost = float(worth.rows[layer].sum() - worth.rows[layer][rows[layer]].sum())
        if groups:
            lost += float(worth.groups[layer].sum() - worth.groups[layer][groups[layer]].sum())
        held.append(total - lost)
    order = sorted(range(len(held)), key=lambda layer: -held[layer])
    layers = tuple(sorted(order[: shape.layers]))
    share = sum(held[layer] for layer in layers) / max(sum(worth.layers), 1e-300)
    kept = tuple(groups[layer] for layer in layers) if groups else ()
    return Plan(shape, layers, tuple(rows[layer] for layer in layers), kept, share)


def random_plan(sizes: Sizes, shape: Shape, seed: int) -> Plan:
    """Units of a shape that nothing but the seed chose: what a score has to beat."""
    draw = torch.Generator().manual_seed(seed)

    def some(total: int, count: int) -> Tensor:
        return torch.randperm(total, generator=draw)[:count].sort().values

    layers = tuple(some(sizes.whole.layers, shape.layers).tolist())
    counts = shape.channels or (shape.rows,) * sizes.whole.layers
    rows = tuple(some(sizes.units[layer], counts[layer]) for layer in layers)
    groups = () if shape.groups is None else tuple(some(sizes.whole.groups or 0, shape.groups) for _ in layers)
    return Plan(shape, layers, rows, groups)


def whole_plan(sizes: Sizes) -> Plan:
    """The plan that keeps everything."""
    whole = sizes.whole
    groups = () if whole.groups is None else tuple(torch.arange(whole.groups) for _ in range(whole.layers))
    rows = tuple(torch.arange(count) for count in sizes.units)
    return Plan(whole, tuple(range(whole.layers)), rows, groups, 1.0)
