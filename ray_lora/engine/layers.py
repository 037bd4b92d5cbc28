"""Target layers: where a base's Linear, Conv1D, Conv2d and Embedding outputs get their low-rank term.

A target layer is a forward hook on an untouched module of the base, so the base's weights, names and class stay what
transformers made them. Rows of slot 0 keep the base's output.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_lora.engine.kernels import LoraTerm, lora_add, pick
from ray_lora.engine.routing import Routes, Routing


@dataclass(frozen=True)
class Shape:
    """Shapes of one layer's stacked pair without the slot axis, for `rank` rows of A."""

    a: tuple[int, ...]  # () where `rank` stands is implicit: A is [rank, *a]
    b: int  # B is [b, rank]

    def pair(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of one adapter's A and B in a PEFT file; a convolution's B is 1 x 1."""
        return (rank, *self.a), (self.b, rank) + ((1, 1) if len(self.a) == 3 else ())

    @property
    def width(self) -> int:
        """The largest rank that can add anything: min(in, out)."""
        return min(math.prod(self.a), self.b)


def is_linear(module: nn.Module) -> bool:
    """Whether it is a Linear, or GPT-2's Conv1D (a Linear whose weight is [in, out])."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def refusal(module: nn.Module) -> str | None:
    """Why this module cannot be a target, or None."""
    if isinstance(module, nn.Conv2d):
        if type(module) is not nn.Conv2d:
            return f"it is a {type(module).__name__}, which computes more than a convolution, also in PEFT's A"
        if module.groups != 1:
            return f"it is a convolution in {module.groups} groups; only groups=1 is supported"
        if module.dilation not in ((1, 1), 1):
            return "it is a dilated convolution, whose dilation PEFT drops"
        if module.padding_mode != "zeros":
            return f"it pads with {module.padding_mode!r}; only zeros are supported"
        return None
    if is_linear(module) or isinstance(module, nn.Embedding):
        return None
    return f"it is a {type(module).__name__}; only Linear, Conv1D, Conv2d and Embedding layers hold adapters"


def shape_of(module: nn.Module) -> Shape:
    """Shapes of the low-rank pair of a supported module."""
    if isinstance(module, nn.Conv2d):
        return Shape((module.in_channels, *module.kernel_size), module.out_channels)
    if isinstance(module, nn.Embedding):
        return Shape((module.num_embeddings,), module.embedding_dim)
    if isinstance(module, nn.Linear):
        return Shape((module.in_features,), module.out_features)
    assert isinstance(module.weight, Tensor)
    return Shape((module.weight.shape[0],), module.weight.shape[1])  # Conv1D: [in, out]


class TargetLayer:
    """One wrapped module: its stacked pair and the hook that adds the low-rank term.

    Attributes:
        A, B: trained stacks, [slots, max_rank, *a] and [slots, out, max_rank], views into the engine's buffer.
        a, b: the same in the base's dtype, what a pass multiplies with.
        scaling: alpha/r of each slot; 0 where the slot's adapter has no pair here. A row of the engine's table.
        index: which row.
    """

    def __init__(self, name: str, module: nn.Module, slots: int) -> None:
        self.name = name
        self.number = zlib.crc32(name.encode())  # tells its dropout from other layers'
        self.module = module
        self.shape = shape_of(module)
        self.embedding = isinstance(module, nn.Embedding)
        self.ranks = [0] * slots
        self.scaling: Tensor
        self.index: int
        self.A: nn.Parameter
        self.B: nn.Parameter
        self.a: Tensor
        self.b: Tensor

    def init(self, slot: int, generator: torch.Generator) -> None:
        """PEFT's start: A kaiming-uniform and B zero; for an Embedding A zero and B normal."""
        rank = self.ranks[slot]
        if self.embedding:
            fresh = torch.empty(self.shape.b, rank).normal_(generator=generator)
            self.B.data[slot, :, :rank] = fresh.to(self.B)
        else:
            fresh = torch.empty(rank, *self.shape.a)
            nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            self.A.data[slot, :rank] = fresh.to(self.A)

    def holds(self, routing: Routing) -> bool:
        """Whether any of a pass's slots has a pair here."""
        return any(self.ranks[slot] for slot in routing.distinct)

    def attach(self, current: Callable[[], Routes | None]) -> Any:
        """Hook the module; `current` gives the routes of the pass, None for the bare base."""
        term = self._conv if isinstance(self.module, nn.Conv2d) else self._embed if self.embedding else self._linear

        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            routes = current()
            if routes is None or not self.holds(routes.rows):
                return output
            return term(args[0], output, routes.of(args[0], shared=self.embedding))

        return self.module.register_forward_hook(hook)

    def _linear(self, x: Tensor, base: Tensor, routing: Routing) -> Tensor:
        rows = routing.by_row(x)
        scale: Any = routing.factors[self.index] if routing.segments else routing.scales[self.index]
        if not torch.is_grad_enabled():
            return lora_add(rows, base, self.a, self.b, scale, routing)[0]
        mask = routing.dropout.mask(rows, self.number) if routing.dropout else None
        return LoraTerm.apply(rows, base, self.A, self.B, self.a, self.b, scale, routing, mask)  # type: ignore

    def _embed(self, ids: Tensor, base: Tensor, routing: Routing) -> Tensor:
        """PEFT's Embedding: the columns of A at the ids, then B; no dropout, as in PEFT."""
        slots, rank = routing.slots, routing.rank
        if not routing.joined:
            ids = ids.expand(len(slots), *ids.shape[1:])  # all rows may share their positions
        per_row = ids.reshape(len(slots), -1)  # [rows, m]
        columns = pick(self.A, lambda stack: stack[:, :rank].transpose(1, 2), slots[:, None], per_row)
        a = columns.to(base.dtype)  # [rows, m, rank]
        b = pick(self.B, lambda stack: stack[:, :, :rank], slots).to(base.dtype)  # [rows, out, rank]
        term = torch.bmm(a * self.scaling[slots].reshape(-1, 1, 1), b.transpose(1, 2))
        return base + term.reshape(*ids.shape, -1)

    def _conv(self, x: Tensor, base: Tensor, routing: Routing) -> Tensor:
        """Each row's own A as one group of a grouped convolution, then its own B at every pixel."""
        conv, slots, rank = self.module, routing.slots, routing.rank
        assert isinstance(conv, nn.Conv2d)
        rows = len(slots)
        inputs = x * routing.dropout.mask(x, self.number) if routing.dropout else x
        a = pick(self.A, lambda stack: stack[:, :rank], slots).to(x.dtype)  # [rows, rank, in, kh, kw]
        b = pick(self.B, lambda stack: stack[:, :, :rank], slots).to(x.dtype)  # [rows, out, rank]
        h = F.conv2d(inputs.reshape(1, -1, *x.shape[2:]), a.flatten(0, 1), None, conv.stride, conv.padding, groups=rows)
        h = h.reshape(rows, rank, -1) * self.scaling[slots].reshape(-1, 1, 1)
        return base + torch.bmm(b, h).reshape(base.shape)
