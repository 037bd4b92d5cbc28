"""Keys and values of rows that are being written, kept between passes: rows enter, grow token by token, and leave.

Rows of like capacity lie in one slab, [rows, heads, capacity, size] a layer, the first ones in use. A row that leaves
gives its place to the last one, so that attention reads a slab where it lies: nothing is gathered, nothing is copied
from step to step. A place that is given up is zeroed, so that nothing of one row reaches the next.

    cache = KvCache(device)
    place = cache.enter(200)             # room for 200 tokens
    cache.leave(place)

It knows places and tensors, not tokens, slots or adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

_LEAST = 64  # tokens of the smallest slab's rows; the next are twice as long
_ROWS = 8  # of a fresh slab, which grows by doubling

Pair: TypeAlias = list[Tensor]  # keys and values of one layer, each [rows, heads, capacity, size]


@dataclass(eq=False)
class Place:
    """One row's place.

    Attributes:
        index: its row in the slab, which changes when another leaves.
        length: tokens that are kept.
    """

    slab: Slab
    index: int
    length: int = 0


@dataclass(eq=False)
class Slab:
    """Rows of one capacity, in tokens.

    Attributes:
        places: the rows in use, in their order.
        layers: of each layer its pair, once it has written one.
    """

    capacity: int
    device: torch.device
    places: list[Place] = field(default_factory=list)
    layers: dict[int, Pair] = field(default_factory=dict)
    rows: int = _ROWS

    def pair(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        """The layer's keys and values, with room for heads such as these, [..., heads, tokens, size]."""
        if layer not in self.layers:
            with torch.inference_mode(False):  # what is kept is written between passes too
                self.layers[layer] = [
                    torch.zeros(self.rows, x.shape[-3], self.capacity, x.shape[-1], dtype=x.dtype, device=self.device)
                    for x in (key, value)
                ]
        return self.layers[layer]

    def grow(self) -> None:
        """Twice as many rows."""
        for layer, pair in self.layers.items():
            with torch.inference_mode(False):
                self.layers[layer] = [torch.cat([x, torch.zeros_like(x)]) for x in pair]
        self.rows *= 2


class KvCache:
    """The slabs of one engine."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slabs: dict[int, Slab] = {}

    def enter(self, capacity: int) -> Place:
        """A place with room for so many tokens."""
        size = _LEAST
        while size < capacity:
            size *= 2
        slab = self._slabs.setdefault(size, Slab(size, self._device))
        if len(slab.places) == slab.rows:
            slab.grow()
        place = Place(slab, len(slab.places))
        slab.places.append(place)
        return place

    def fork(self, place: Place) -> Place:
        """A place that begins with all that another has kept."""
        other = self.enter(place.slab.capacity)
        other.length = place.length
        for pair in place.slab.layers.values():
            for x in pair:
                x[other.index, :, : place.length] = x[place.index, :, : place.length]
        return other

    def copy(self, place: Place) -> dict[int, Pair]:
        """All that a place has kept, by layer, each [heads, tokens, size]."""
        return {
            layer: [x[place.index, :, : place.length].clone() for x in pair]
            for layer, pair in place.slab.layers.items()
        }

    def fill(self, place: Place, kept: Mapping[int, Pair], length: int) -> None:
        """Have a fresh place begin with the first tokens of what another had kept."""
        for layer, pair in kept.items():
            for x, known in zip(place.slab.pair(layer, *pair), pair, strict=True):
                x[place.index, :, :length] = known[:, :length]
        place.length = length

    def leave(self, place: Place) -> None:
        """Give a place back."""
        slab, last = place.slab, place.slab.places.pop()
        for pair in slab.layers.values():
            for x in pair:
                if last is not place:
                    x[place.index, :, : last.length] = x[last.index, :, : last.length]
                    x[place.index, :, last.length : place.length] = 0
                x[last.index, :, : last.length] = 0
        if last is not place:
            slab.places[place.index] = last
            last.index = place.index
        if not slab.places:
            del self._slabs[slab.capacity]

    @property
    def rows(self) -> int:
        """Places in use."""
        return sum(len(slab.places) for slab in self._slabs.values())

    @property
    def bytes(self) -> int:
        """Memory that is held."""
        pairs = [pair for slab in self._slabs.values() for pair in slab.layers.values()]
        return sum(x.numel() * x.element_size() for pair in pairs for x in pair)
