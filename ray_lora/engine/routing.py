"""Which slot each row of the current pass belongs to. Every target layer of one engine reads the same Routing.

A pass sets the routing and leaves it set until the next pass, so that a backward, and layers re-run by activation
checkpointing, see the slots of their own forward.
"""

from __future__ import annotations

from dataclasses import dataclass
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
        group: rows of each slot when rows come as equal contiguous groups of ascending slots, else 0.
        dropout: what each row's adapter drops of its layers' inputs; None when nothing is.
    """

    slots: Tensor
    rank: int
    distinct: tuple[int, ...]
    group: int = 0
    dropout: Dropout | None = None

    @classmethod
    def of(cls, slots: Tensor, ranks: list[int], dropout: Dropout | None = None) -> Routing:
        """Routing of `slots` [rows] given each slot's largest rank."""
        rows = slots.tolist()
        distinct = tuple(sorted(set(rows)))
        size = len(rows) // len(distinct)
        grouped = rows == [slot for slot in distinct for _ in range(size)]
        return cls(
            slots=slots,
            rank=max(ranks[slot] for slot in distinct),
            distinct=distinct,
            group=size if grouped else 0,
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
