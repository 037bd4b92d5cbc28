"""Which slot each row of the current pass belongs to. Every target layer of one engine reads the same Routing.

A pass sets the routing and leaves it set until the next pass, so that a backward, and layers re-run by activation
checkpointing, see the slots of their own forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from ray_lora.engine.dropout import Dropout
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
    """

    slots: Tensor
    rank: int
    distinct: tuple[int, ...]
    block: int
    owners: Tensor
    scales: Tensor
    span: slice | None = None
    dropout: Dropout | None = None

    @classmethod
    def of(
        cls,
        slots: Tensor,
        ranks: list[int],
        scaling: Tensor | None = None,
        dropout: Dropout | None = None,
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
        )

    def by_row(self, x: Tensor) -> Tensor:
        """View [rows * m, ..., width] as [rows, m', width]; layers inside a model may split rows, never mix them."""
        rows = self.slots.shape[0]
        if x.shape[0] % rows:
            raise CapacityError(
                f"a target layer saw {x.shape[0]} leading entries for {rows} rows; "
                "it mixes rows and cannot hold adapters"
            )
        return x.reshape(rows, -1, x.shape[-1])


def take_rows(outputs: Any, index: Tensor) -> Any:
    """The rows `index` of every tensor among a model's outputs."""
    kept = {name: value[index.to(value.device)] for name, value in outputs.items() if isinstance(value, Tensor)}
    return type(outputs)(**kept)
