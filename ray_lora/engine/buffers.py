"""Buffers: all slots' numbers in a few flat tensors, one row a slot.

An optimizer, an all-reduce or a checkpoint deals with rows. Layers and heads hold views of them; PEFT's file keys name
views of one row.

It knows layouts, not what the numbers mean.

    buffers.flat                            # [slots + 1, numbers]: A and B of every target layer
    buffers.views(3, resident, head)        # {"base_model.model.bert...query.lora_A.weight": [rank, in], ...}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ray_lora.adapters.peft_folder import PREFIX
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.heads import Head
from ray_lora.engine.layers import TargetLayer
from ray_lora.recipe import LoraSpec


@dataclass(frozen=True)
class Resident:
    """What one slot holds."""

    config: LoraSpec
    head: HeadSpec | None
    targets: tuple[str, ...]  # backbone module names
    peft_type: str | None
    prefix: str  # "bert." where the plain class holds the backbone under a name, else ""


class Buffers:
    """One row of numbers a slot.

    Attributes:
        flat: the pairs of every layer, [slots + 1, numbers]; in an engine that trains they are float32 whatever the
            base is held in (float64 for a float64 base), else of the base's dtype.
        grad: their gradients, in the same layout; empty unless the engine trains.
        scaling: alpha/r of every layer and slot, [layers, slots + 1], in the base's dtype.
        compute: `flat` in the base's dtype, what a pass multiplies with; `flat` itself where the dtypes agree.
        versions: how often each slot was refreshed.
        head_flat, head_grad: the same for each head class; what is never trained comes last and has no gradients.
    """

    def __init__(
        self,
        layers: Mapping[str, TargetLayer],
        *,
        slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
        train: bool,
    ) -> None:
        self._layers, self._max_rank, self._train = layers, max_rank, train
        self.versions = [0] * (slots + 1)
        self._offsets, numbers = _offsets(layers, max_rank)
        self._exact = torch.promote_types(dtype, torch.float32)  # of heads, and of pairs that are trained
        exact = self._exact if train else dtype
        self.flat = torch.zeros(slots + 1, numbers, device=device, dtype=exact)
        self.grad = torch.zeros_like(self.flat) if train else self.flat.new_zeros(0, 0)
        self.compute = self.flat if exact == dtype else self.flat.to(dtype)
        self.head_flat: dict[str, Tensor] = {}
        self.head_grad: dict[str, Tensor] = {}
        self.scaling = torch.zeros(len(layers), slots + 1, device=device, dtype=dtype)
        for index, layer in enumerate(layers.values()):
            layer.index, layer.scaling = index, self.scaling[index]
            a, b = self._pair(layer, self.flat)
            layer.A, layer.B = nn.Parameter(a), nn.Parameter(b)
            layer.a, layer.b = self._pair(layer, self.compute)
            if train:
                layer.A.grad, layer.B.grad = self._pair(layer, self.grad)

    @property
    def all(self) -> list[Tensor]:
        """Every buffer that holds a slot's numbers, [slots + 1, numbers]."""
        values = [self.flat, *self.head_flat.values()]
        return values + ([self.grad, *self.head_grad.values()] if self._train else [])

    def place_head(self, head: Head) -> None:
        """Fresh rows for a head class, in place of those it had."""
        flat = self.flat.new_zeros(len(self.flat), sum(head.sizes), dtype=self._exact)
        grad = flat.new_zeros(len(flat), sum(head.sizes[:2])) if self._train else None
        head.place(flat, grad)
        self.head_flat[head.kind] = flat
        if grad is not None:
            self.head_grad[head.kind] = grad

    def drop_head(self, kind: str) -> None:
        """Give up the rows of a kind of head."""
        self.head_flat.pop(kind, None)
        self.head_grad.pop(kind, None)

    def refresh(self, slots: Iterable[int]) -> None:
        """Copy trained values of these slots into the pass's dtype."""
        for slot in slots:
            self.versions[slot] += 1
            if self.compute is not self.flat:
                self.compute[slot].copy_(self.flat[slot])

    def clear(self, slot: int) -> None:
        """Zero everything the slot holds."""
        for buffer in self.all:
            buffer[slot] = 0
        self.refresh([slot])

    def views(
        self, slot: int, resident: Resident, head: Head | None, flats: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The slot's numbers under PEFT's file keys, cut to the adapter's ranks and labels.

        Args:
            flats: buffers of gradients or of an optimizer's moments, pairs first, then head; they hold nothing for what
                is never trained.
        """
        views: dict[str, Tensor] = {}
        for name in resident.targets:
            layer = self._layers[name]
            pair = self._pair(layer, self.flat if flats is None else flats[0])
            views |= _pair_views(f"{PREFIX}{resident.prefix}{name}", layer, slot, *pair)
        if head is not None and resident.head is not None:
            flat = self.head_flat[head.kind] if flats is None else flats[1]
            for name, view in head.views(flat, slot, resident.head.num_labels).items():
                views[f"{PREFIX}{name}"] = view
        return views

    def stacked(self, layers: Sequence[TargetLayer]) -> tuple[Tensor, Tensor]:
        """Views A [slots, layers, max_rank, in] and B [slots, layers, max_rank, out] in the pass's dtype, of linear
        layers of one shape that follow one another."""
        first, shape, rank = layers[0], layers[0].shape, self._max_rank
        (width,) = shape.a
        numbers, begin = rank * (width + shape.b), self._offsets[first.name]
        for at, layer in enumerate(layers):
            if layer.shape != shape or self._offsets[layer.name] != begin + at * numbers:
                raise ValueError(f"{layer.name!r} has another shape than {first.name!r}, or does not follow it")
        part = self.compute[:, begin : begin + len(layers) * numbers].view(-1, len(layers), numbers)
        a, b = part[..., : rank * width], part[..., rank * width :]
        return a.view(*a.shape[:2], rank, width), b.view(*b.shape[:2], rank, shape.b)

    def _pair(self, layer: TargetLayer, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Views A [slots, max_rank, *a] and B [slots, out, max_rank] of one layer.

        B lies transposed, so that the first ranks of a slot, which are all that most passes need, are one stretch of
        memory.
        """
        begin, rank, shape = self._offsets[layer.name], self._max_rank, layer.shape
        middle = begin + rank * math.prod(shape.a)
        end = middle + rank * shape.b
        b = flat[:, middle:end].view(-1, rank, shape.b).transpose(1, 2)
        return flat[:, begin:middle].view(-1, rank, *shape.a), b


def _offsets(layers: Mapping[str, TargetLayer], max_rank: int) -> tuple[dict[str, int], int]:
    """Where each layer's numbers begin in a row, and how long a row is."""
    offsets, at = {}, 0
    for name, layer in layers.items():
        offsets[name] = at
        at += max_rank * (math.prod(layer.shape.a) + layer.shape.b)
    return offsets, at


def _pair_views(key: str, layer: TargetLayer, slot: int, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """One slot's pair in one layer, in PEFT's names and shapes."""
    rank = layer.ranks[slot]
    if layer.embedding:
        return {f"{key}.lora_embedding_A": a[slot, :rank], f"{key}.lora_embedding_B": b[slot, :, :rank]}
    down, up = layer.shape.pair(rank)
    return {f"{key}.lora_A.weight": a[slot, :rank].view(down), f"{key}.lora_B.weight": b[slot, :, :rank].view(up)}
