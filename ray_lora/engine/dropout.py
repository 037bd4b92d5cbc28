"""Dropout that belongs to the adapter: each row's mask follows from the row's own number, not from its place in a pass.

A mask is a hash (MurmurHash3's last step, Appleby 2011) of the row's number, the layer and the value's place. So it is
the same alone and in a pack, whatever the padding, on any worker, after a restart, and when activation checkpointing
runs a layer again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -1640531527  # 2^32 / golden ratio, as int32
_FIRST, _SECOND = -2048144789, -1028477387  # MurmurHash3's factors, as int32


@dataclass(frozen=True)
class Dropout:
    """What the rows of one pass drop.

    Attributes:
        probability: of each row's adapter, [rows]; where rows are joined, of each token's, [tokens].
        draws: a number for each row (or token's row) that fixes its mask, int64.
        places: how many entries of its row lie before a token, [tokens]; None for rows.
    """

    probability: Tensor
    draws: Tensor
    places: Tensor | None = None

    def mask(self, x: Tensor, layer: int) -> Tensor:
        """Zero or 1/(1-p) for each value of x [rows or tokens, ...]; ones in rows that drop nothing."""
        flat = x.reshape(len(self.draws), -1)
        mask = torch.ones_like(flat)
        mine = self.probability.nonzero().squeeze(1)
        p = self.probability[mine].unsqueeze(1)
        before = None if self.places is None else self.places[mine] * flat.shape[1]
        chance = _uniform(self.draws[mine], layer, flat.shape[1], before)
        mask[mine] = ((chance >= p) / (1 - p)).to(x.dtype)
        return mask.view_as(x)


def _uniform(draws: Tensor, layer: int, places: int, before: Tensor | None = None) -> Tensor:
    """Numbers in [0, 1), [rows, places]; a shorter row's are the first of a longer one's.

    Args:
        before: the number of each row's first place, [rows]; None for 0.
    """
    keys = (draws * 0x9E3779B97F4A7C1 + (layer * 0xC2B2AE3D27D4EB4) % (1 << 63)) >> 16
    place = torch.arange(places, dtype=torch.int32, device=draws.device)[None]
    if before is not None:
        place = place + before.int()[:, None]
    bits = place.mul(_GOLDEN) + keys.int()[:, None]
    bits ^= (bits >> 16) & 0xFFFF
    bits *= _FIRST
    bits ^= (bits >> 13) & 0x7FFFF
    bits *= _SECOND
    bits ^= (bits >> 16) & 0xFFFF
    return (bits & 0x7FFFFF00).float() * 2.0**-31


def draw_of(seed: int, step: int, row: int) -> int:
    """The number of one row in one step of one adapter, below 2^63."""
    return ((seed * 1_000_003 + step) * 4_294_967_291 + row) % (1 << 63)


def draw_of_window(draw: int, window: int) -> int:
    """The number of one window of a row that has `draw`; the first one's is the row's own."""
    return (draw + window * 7_046_029_254_386_353_131) % (1 << 63)
