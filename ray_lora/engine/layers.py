"""Target layers: where outputs of a base's Linear, Conv1D, convolution and Embedding layers get their low-rank term.

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
from torch import Tensor, nn

from ray_lora.bases.few_bits.convolutions import is_plain
from ray_lora.bases.geometry import CONVOLUTIONS, Geometry
from ray_lora.engine import lone_slot
from ray_lora.engine.convolution import ConvTerm, conv_add, is_innermost
from ray_lora.engine.kernels import LoraTerm, lora_add, pick
from ray_lora.engine.routing import Routes, Routing
from ray_lora.errors import CapacityError


@dataclass(frozen=True)
class Shape:
    """Shapes of one layer's stacked pair without the slot axis, for `rank` rows of A.

    Attributes:
        a: A is [rank, *a]. b: B is [b, rank].
        marked: whether PEFT would take the file's A for one that it computes otherwise; it then has an axis of 1 more,
            so that PEFT refuses the folder instead.
    """

    a: tuple[int, ...]
    b: int
    marked: bool = False

    def pair(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of one adapter's A and B in a PEFT file; a convolution's B is one of 1 x 1."""
        return (rank, *self.a, *(1,) * self.marked), (self.b, rank, *(1,) * (len(self.a) - 1))

    @property
    def width(self) -> int:
        """The largest rank that can add anything: min(in, out)."""
        return min(math.prod(self.a), self.b)


def is_linear(module: nn.Module) -> bool:
    """Whether it is a Linear, or GPT-2's Conv1D (a Linear whose weight is [in, out])."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_convolution(module: nn.Module) -> bool:
    """Whether it is a convolution of any kind, also of one that holds no adapters."""
    return isinstance(module, CONVOLUTIONS)


def refusal(module: nn.Module) -> str | None:
    """Why this module cannot be a target, or None."""
    if is_convolution(module):
        if not is_plain(module):
            return f"it is a {type(module).__name__}, which computes more than a convolution, also in PEFT's A"
        return None
    if is_linear(module) or isinstance(module, nn.Embedding):
        return None
    return f"it is a {type(module).__name__}; only Linear, Conv1D, convolution and Embedding layers hold adapters"


def beyond_peft(module: nn.Module) -> str | None:
    """Why PEFT (0.21) has no adapter on this module that computes what ours does, or None. PEFT refuses a folder
    with such a pair."""
    if not isinstance(module, CONVOLUTIONS):
        return None
    if module.transposed:
        return "a transposed convolution, on which PEFT has no adapters"
    if module.groups > 1:
        return "a convolution in groups, for which PEFT's A reads all channels, so that it cannot be merged"
    if any(step > 1 and size > 1 for step, size in zip(module.dilation, module.kernel_size, strict=True)):
        return "a dilated convolution, whose dilation PEFT drops"
    if module.padding_mode != "zeros" and any(module._reversed_padding_repeated_twice):
        return f"a convolution that pads with {module.padding_mode!r}, where PEFT pads with zeros"
    return None


def shape_of(module: nn.Module) -> Shape:
    """Shapes of the low-rank pair of a supported module."""
    if isinstance(module, CONVOLUTIONS):
        marked = beyond_peft(module) is not None
        return Shape((module.in_channels // module.groups, *module.kernel_size), module.out_channels, marked)
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
        beyond: why PEFT does not compute its pair, or None.
        scaling: alpha/r of each slot; 0 where the slot's adapter has no pair here. A row of the engine's table.
        index: which row.
        after: by what a norm that is folded into the module multiplies each channel of its output, [out]; None where
            none is.
    """

    def __init__(self, name: str, module: nn.Module, slots: int) -> None:
        self.name = name
        self.number = zlib.crc32(name.encode())  # tells its dropout from other layers'
        self.module = module
        self.shape = shape_of(module)
        self.beyond = beyond_peft(module)
        self.embedding = isinstance(module, nn.Embedding)
        self.geometry = Geometry.of(module) if isinstance(module, CONVOLUTIONS) else None
        self.after: Tensor | None = None
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
        term = self._conv if self.geometry is not None else self._embed if self.embedding else self._linear

        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            routes = current()
            if routes is None or not self.holds(routes.rows):
                return output
            return term(args[0], output, routes.of(args[0], shared=self.embedding))

        return self.module.register_forward_hook(hook)

    def _linear(self, x: Tensor, base: Tensor, routing: Routing) -> Tensor:
        if routing.groups is not None:
            tokens, out = x.reshape(-1, x.shape[-1]), base.view(-1, base.shape[-1])
            routing.groups.add(self.index, tokens, out)
            if routing.segments:
                lora_add(tokens, out, self.a, self.b, routing.factors[self.index], routing)
            return base
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
        geometry = self.geometry
        assert geometry is not None
        if routing.joined or x.dim() != len(geometry.kernel) + 2 or len(x) % len(routing.owners):
            raise CapacityError(
                f"convolution {self.name!r} saw an input of shape {list(x.shape)} for {len(routing.slots)} rows; its "
                "adapters share no pass with others"
            )
        inputs = x * routing.dropout.mask(x, self.number) if routing.dropout else x
        geometry = geometry.fitting(inputs, base)
        inputs, scale = geometry.padded(inputs), routing.scales[self.index]
        if torch.is_grad_enabled():
            given = (inputs, base, self.A, self.B, self.a, self.b, scale, routing, geometry, self.after)
            term: Tensor = ConvTerm.apply(*given)  # type: ignore[no-untyped-call]
            return term
        if routing.lone is None or not (is_innermost(inputs) and is_innermost(base)):
            conv_add(inputs, base, self.a, self.b, scale, routing, geometry, self.after)
            return base
        if self.index not in routing.lone:
            slot, rank = routing.distinct[0], routing.rank
            up = self.b[slot, :, :rank] * self.scaling[slot]
            up = up if self.after is None else up * self.after[:, None]
            routing.lone[self.index] = lone_slot.pair_of(self.a[slot, :rank], up, geometry)
        return lone_slot.add(inputs, base, routing.lone[self.index], geometry)
