"""The low-rank terms of convolutions in passes whose rows are all of one slot, without gradients: a camera's pictures.

One row is little work in many calls, so what follows from the slot's numbers alone is made once and kept: A as a weight
whose channels lie innermost, B times alpha/r, in groups their product. Nothing is merged into the base's weight, so
that a row's answer does not depend on who shares its pass. It knows tensors and slots, not modules of a base.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ray_lora.bases.geometry import Geometry
from ray_lora.engine.convolution import low_rank, strided

Pair = tuple[Tensor, Tensor | None]
_MOST = 4  # slots that are kept: their numbers lie in memory once more


class LoneSlots:
    """Pairs of the slots that last had a pass for themselves, by the layer's index; `versions` says how often each
    slot's numbers have changed, after which nothing of them is kept."""

    def __init__(self, versions: Sequence[int]) -> None:
        self._versions = versions
        self._kept: dict[int, tuple[int, dict[int, Pair]]] = {}

    def pairs(self, slot: int) -> dict[int, Pair]:
        """What is kept of a slot as it is now, to be filled by its layers."""
        version, pairs = self._kept.pop(slot, (-1, {}))
        if version != self._versions[slot]:
            pairs = {}
        self._kept[slot] = self._versions[slot], pairs
        if len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]
        return pairs


def pair_of(a: Tensor, b: Tensor, geometry: Geometry) -> Pair:
    """What `add` multiplies with.

    Args:
        a: [rank, in / groups, *kernel]. b: [out, rank], times alpha/r and what a norm behind the layer multiplies by.
    """
    with torch.inference_mode(False):  # passes of either mode read it
        if geometry.groups > 1:
            return _innermost(low_rank(a, b, geometry)), None
        if geometry.is_point:
            return a.flatten(1).t().contiguous(), b.t().contiguous()
        return _innermost(geometry.laid(a)), b.t().contiguous()


def add(x: Tensor, y: Tensor, pair: Pair, geometry: Geometry) -> Tensor:
    """y + B A * x, added to y in place.

    Args:
        x: [pictures, in, *pixels], and y: [pictures, out, *pixels], with channels innermost in memory.
    """
    a, b = pair
    if b is None:
        return y.add_(geometry.run(x, a))
    h = _flat(strided(x, geometry)) @ a if geometry.is_point else _flat(geometry.run(x, a))
    _flat(y).addmm_(h, b)
    return y


def _innermost(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _flat(x: Tensor) -> Tensor:
    """[pictures, channels, height, width] as [pixels, channels], a view where channels lie innermost."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)
