"""Which slot each row of the current pass belongs to. Every target layer of one engine reads the same Routes.

A pass sets the routing and leaves it set until the next pass, so that a backward, and layers re-run by activation
checkpointing, see the slots of their own forward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ray_lora.engine.dropout import Dropout
from ray_lora.engine.grouped import Groups
from ray_lora.errors import CapacityError


@dataclass(frozen=True)
class Routing:
    """One pass's rows.

    Attributes:
        slots: slot of each row, [rows], on the engine's device.
        rank: the largest rank among the pass's slots; stacked tensors are cut to it.
        distinct: the pass's slots in ascending order.
        block: rows of a block; a pass is cut into blocks of neighbours that have one slot.
        owners: slot of each block, [rows / block].
        span: where in a stack the owners stand, when they are neighbours there in ascending order.
        scales: alpha/r of each layer and block, [layers, blocks, 1, 1], as the table has them; none without one.
        dropout: what each row's adapter drops of its layers' inputs; None when nothing is.
        joined: whether its rows are blocks of tokens, of rows that are laid end to end.
        segments: (slot, first token, one behind the last) of each slot's stretch, where products go slot by slot;
        factors: their alpha/r, of each layer.
        groups: where its tokens' pairs lie side by side, if they do.
        lone: what is kept of the slot, where all rows have one; see `lone_slot.py`.
    """

    slots: Tensor
    rank: int
    distinct: tuple[int, ...]
    block: int
    owners: Tensor
    scales: Tensor
    span: slice | None = None
    dropout: Dropout | None = None
    joined: bool = False
    segments: tuple[tuple[int, int, int], ...] = ()
    factors: tuple[tuple[float, ...], ...] = ()
    groups: Groups | None = None
    lone: dict[int, tuple[Tensor, Tensor | None]] | None = None

    @classmethod
    def of(
        cls,
        slots: Tensor,
        ranks: list[int],
        scaling: Tensor | None = None,
        dropout: Dropout | None = None,
        joined: bool = False,
    ) -> Routing:
        """Routing of `slots` [rows] given each slot's largest rank and the table of alpha/r, [layers, slots]."""
        rows = slots.tolist()
        distinct = tuple(sorted(set(rows)))
        block = math.gcd(*(len(list(run)) for _, run in groupby(rows)))
        owners = rows[::block]
        owner = slots[::block]
        table = slots.new_zeros(0, len(ranks)) if scaling is None else scaling
        neighbours = owners == list(range(owners[0], owners[0] + len(owners)))
        return cls(
            slots=slots,
            rank=max(ranks[slot] for slot in distinct),
            distinct=distinct,
            block=block,
            owners=owner,
            scales=table[:, owner, None, None],
            span=slice(owners[0], owners[0] + len(owners)) if neighbours else None,
            dropout=dropout,
            joined=joined,
        )

    @classmethod
    def of_segments(
        cls,
        segments: Sequence[tuple[int, int, int]],
        count: int,
        ranks: list[int],
        scaling: Tensor,
        dropout: Dropout | None = None,
    ) -> Routing:
        """Routing of `count` joined tokens, slot by slot; those behind the last stretch are nobody's."""
        owners = [slot for slot, _, _ in segments]
        ends = [*(begin for _, begin, _ in segments[1:]), count]
        lengths = torch.tensor([end - begin for (_, begin, _), end in zip(segments, ends, strict=True)])
        owner = torch.tensor(owners, device=scaling.device)
        return cls(
            slots=owner.repeat_interleave(lengths.to(owner.device)),
            rank=max(ranks[slot] for slot in owners),
            distinct=tuple(sorted(set(owners))),
            block=1,
            owners=owner,
            scales=scaling[:, :0],
            dropout=dropout,
            joined=True,
            segments=tuple(segments),
            factors=tuple(map(tuple, scaling[:, owner].tolist())),
        )

    def with_groups(self, groups: Groups) -> Routing:
        """The same where the pairs of its last segments lie side by side."""
        left = sum(begin < groups.begin for _, begin, _ in self.segments)
        segments, factors = self.segments[:left], tuple(each[:left] for each in self.factors)
        return replace(self, segments=segments, factors=factors, groups=groups)

    def by_row(self, x: Tensor) -> Tensor:
        """View [rows * m, ..., width] as [rows, m', width]; of segments as [tokens, width]."""
        return x.reshape(-1, x.shape[-1]) if self.segments else x.reshape(len(self.slots), -1, x.shape[-1])


@dataclass(frozen=True)
class Routes:
    """The routings of one pass.

    Attributes:
        rows: of its rows.
        tokens: where rows are joined, of blocks of their tokens; `count` tokens in all.
        whole: where all rows have one slot, of whatever a layer is given, as a whole.
    """

    rows: Routing
    tokens: Routing | None = None
    count: int = 0
    whole: Routing | None = None

    def of(self, x: Tensor, shared: bool = False) -> Routing:
        """The routing of a layer's input: of tokens, [1, tokens, ...], or of rows, [rows * m, ...].

        Layers inside a model may split rows, never mix them; a `shared` input may be one for all rows.
        """
        if self.tokens is not None and self.count in (x.shape[0], x.shape[:2].numel()):
            return self.tokens
        rows = len(self.rows.slots)
        if x.shape[0] % rows == 0 or x.shape[:2] == (1, rows) or shared:
            return self.rows
        if self.whole is not None:
            return self.whole
        raise CapacityError(
            f"a target layer saw {x.shape[0]} leading entries for {rows} rows; its adapters share no pass with others"
        )


def take_rows(outputs: Any, index: Tensor) -> Any:
    """The rows `index` of a model's outputs: a tensor, or a mapping, dataclass, tuple or list of such; what a mapping
    holds beside (a cache) is left out."""
    if isinstance(outputs, Tensor):
        return outputs[index.to(outputs.device)]
    if isinstance(outputs, Mapping):  # transformers' ModelOutput too, before it is taken for a dataclass
        kept = {name: take_rows(value, index) for name, value in outputs.items() if _has_rows(value)}
        return kept if type(outputs) is dict else type(outputs)(**kept)
    if is_dataclass(outputs) and not isinstance(outputs, type):
        values = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
        return replace(outputs, **{name: take_rows(value, index) for name, value in values.items() if _has_rows(value)})
    if isinstance(outputs, (tuple, list)):
        taken = [take_rows(value, index) if _has_rows(value) else value for value in outputs]
        return type(outputs)(*taken) if hasattr(outputs, "_fields") else type(outputs)(taken)
    raise TypeError(f"outputs of type {type(outputs).__name__} have no rows")


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """Every tensor of a model's outputs, of whatever `take_rows` takes."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_in(value)
    elif isinstance(outputs, (tuple, list)):
        for value in outputs:
            yield from tensors_in(value)
    elif is_dataclass(outputs):
        yield from tensors_in([getattr(outputs, field.name) for field in fields(outputs)])


def _has_rows(value: Any) -> bool:
    structured = isinstance(value, (tuple, list, dict)) or is_dataclass(value)
    return structured or (isinstance(value, Tensor) and value.dim() > 0)
