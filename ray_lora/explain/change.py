"""What an adapter does to each layer's weight: how large its change is, and in how many directions.

    changes(adapter, base)[0].relative          # 0.031: the change's norm is 3 % of the weight's

No change is ever formed as a matrix: its singular values follow from B and A alone. It knows tensors, no rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.merge import singular_values
from ray_lora.bases.base import Base
from ray_lora.bases.quantised import float_weight
from ray_lora.engine.brought import check_base, prefix_of
from ray_lora.errors import AdapterError


@dataclass(frozen=True)
class LayerChange:
    """One layer's change, alpha/r B A.

    Attributes:
        layer: as the plain class names it. rank: of the pair.
        norm, weight_norm: Frobenius norms of the change and of the base's weight.
        relative: their ratio; None of a weight of zeros.
        singular_values: of the change, largest first. effective_rank: see `effective_rank`.
        share: of the energy (squared norms) of all layers' changes.
    """

    layer: str
    rank: int
    norm: float
    weight_norm: float
    relative: float | None
    singular_values: tuple[float, ...]
    effective_rank: float
    share: float


def changes(adapter: Adapter, base: Base) -> list[LayerChange]:
    """Every layer of the adapter, in the order of the base's modules.

    Raises:
        BaseModelError: it is another base's adapter. AdapterError: a layer is not the base's.
    """
    check_base(adapter, base)
    prefix = prefix_of(adapter, base)
    known = {prefix + name: module for name, module in base.backbone.named_modules()}
    odd = next((name for name in adapter.layers if name not in known), None)
    if odd is not None:
        raise AdapterError(f"adapter layer {odd!r} matches no layer of base {base.id!r}")
    names = [name for name in known if name in adapter.layers]
    values = {name: singular_values(adapter.layers[name], adapter.scaling(name)) for name in names}
    energy = sum(float(mine.square().sum()) for mine in values.values())
    found = []
    for name in names:
        weight = float_weight(known[name])
        norm, weight_norm = float(values[name].norm()), float(weight.detach().float().norm())
        found.append(
            LayerChange(
                layer=name,
                rank=adapter.layers[name].rank,
                norm=norm,
                weight_norm=weight_norm,
                relative=norm / weight_norm if weight_norm else None,
                singular_values=tuple(values[name].tolist()),
                effective_rank=effective_rank(values[name]),
                share=norm**2 / energy if energy else 0.0,
            )
        )
    return found


def effective_rank(values: Tensor | Sequence[float]) -> float:
    """exp of the entropy of singular values divided by their sum (Roy and Vetterli 2007, "The effective rank"): r where
    r values are alike and all others 0; 0 of no change."""
    given = torch.as_tensor(values, dtype=torch.float64)
    total = float(given.sum())
    if not total:
        return 0.0
    shares = given[given > 0] / total
    return math.exp(-float((shares * shares.log()).sum()))
