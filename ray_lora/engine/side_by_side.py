"""Low-rank pairs of the slots whose rows are being written, side by side from one pass to the next.

Such a pass reads every pair for one token or a few: what it costs is reading, and products of short numbers, which are
one for each row, gain nothing from a processor's matrix units. So what the next pass reads again is copied once, as
float32, cut to the ranks that are there and times alpha/r; a row that joins or leaves moves one slot's pairs.

    pairs = SideBySide(layers, versions, most=2**29)
    groups = pairs.groups([(3, 0, 1), (7, 1, 4)])
    groups.add(layer.index, x, y)                               # y += alpha/r B A x, in place

It knows slots and tokens, not rows or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ray_lora.bases.base import Base
from ray_lora.engine.grouped import Groups
from ray_lora.engine.layers import TargetLayer

Segment = tuple[int, int, int]  # slot, first token, one behind the last
_LEAST = 2**30  # bytes
_FIRST = 8  # places at the beginning; doubled when there are too few


class SideBySide:
    """The places of one engine's slots. A slot whose numbers have changed is copied anew.

    Args:
        layers: in the order of their `index`.
        versions: how often each slot's numbers have changed.
        most: bytes of all places.
    """

    def __init__(self, layers: Sequence[TargetLayer], versions: Sequence[int], most: int) -> None:
        self._layers, self._versions, self._most = layers, versions, most
        self._places: list[tuple[int, int]] = []  # the slot at each, and its version
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self._views: dict[int, tuple[Tensor, Tensor]] = {}  # of the places in use
        self._width = sum(sum(_sizes(layer)) for layer in layers)  # numbers of all pairs of rank 1
        self._room, self._rank = 0, 0

    @classmethod
    def of(cls, layers: Iterable[TargetLayer], versions: Sequence[int], base: Base) -> SideBySide | None:
        """For an engine's linear layers; None off processors and for numbers longer than float32, where nothing was
        measured. The places take no more than the base does, or a gigabyte."""
        if base.device.type != "cpu" or base.dtype not in (torch.float32, torch.bfloat16):
            return None
        weights = sum(x.numel() * x.element_size() for x in base.backbone.parameters())
        linear = [layer for layer in layers if not layer.embedding and layer.geometry is None]
        return cls(linear, versions, max(weights, _LEAST)) if linear else None

    def groups(self, segments: Sequence[Segment]) -> Groups | None:
        """How the tokens of these slots, which lie one behind the other, find their pairs: of the last slots for which
        there is room; None where there is none."""
        rank = max(max(layer.ranks[slot] for layer in self._layers) for slot, _, _ in segments)
        rank = max(rank, self._rank)
        room = self._most // (4 * rank * self._width) if rank else 0  # float32
        if not room:
            return None
        segments = segments[-room:]
        self._place({(slot, self._versions[slot]) for slot, _, _ in segments}, rank, room)
        at = {slot: place for place, (slot, _) in enumerate(self._places)}
        start, stop, most = segments[0][1], segments[-1][2], max(end - begin for _, begin, end in segments)
        take, put = torch.empty(len(at), most, dtype=torch.int64), torch.empty(stop - start, dtype=torch.int64)
        for slot, begin, end in segments:
            take[at[slot]] = begin  # what fills up is of the same slot
            take[at[slot], : end - begin] = torch.arange(begin, end)
            put[begin - start : end - start] = at[slot] * most + torch.arange(end - begin)
        lie = torch.equal(take.flatten(), torch.arange(start, stop))
        if len(next(iter(self._views.values()))[0]) != len(at):
            self._views = {index: (a[: len(at)], b[: len(at)]) for index, (a, b) in self._pairs.items()}
        return Groups(self._views, start, stop, None if lie else take.flatten(), None if lie else put)

    def _place(self, wanted: set[tuple[int, int]], rank: int, room: int) -> None:
        """Have these slots, and no others, in the first places, of which there are at most `room`."""
        if len(wanted) > self._room or rank > self._rank:
            self._grow(min(max(_FIRST, self._room, 2 ** (len(wanted) - 1).bit_length()), room), rank)
        for at in reversed(range(len(self._places))):
            if self._places[at] not in wanted:
                last = self._places.pop()
                if at < len(self._places):
                    self._places[at] = last
                    for stacks in self._pairs.values():
                        for stack in stacks:
                            stack[at] = stack[len(self._places)]
        for slot, version in sorted(wanted - set(self._places)):
            self._copy(slot, len(self._places))
            self._places.append((slot, version))

    def _grow(self, room: int, rank: int) -> None:
        if rank > self._rank:
            self._places.clear()
            self._pairs.clear()
        held, self._room, self._rank = len(self._places), room, rank
        with torch.inference_mode(False):  # they are written between passes too
            for layer in self._layers:
                of_a, of_b = _sizes(layer)
                fresh = torch.zeros(room, of_a, rank), torch.zeros(room, rank, of_b)
                for new, old in zip(fresh, self._pairs.get(layer.index, fresh), strict=True):
                    new[:held] = old[:held]
                self._pairs[layer.index] = fresh
        self._views = dict(self._pairs)

    def _copy(self, slot: int, place: int) -> None:
        scales = torch.stack([layer.scaling[slot] for layer in self._layers]).tolist()
        for layer, scale in zip(self._layers, scales, strict=True):
            a, b = self._pairs[layer.index]
            a[place].copy_(layer.a[slot, : self._rank].t())
            b[place].copy_(layer.b[slot, :, : self._rank].t())
            if scale != 1:
                b[place].mul_(scale)


def _sizes(layer: TargetLayer) -> tuple[int, int]:
    """Of what a linear layer reads and gives."""
    [size] = layer.shape.a
    return size, layer.shape.b
