"""Which slot each row of the current pass belongs to. Every target layer of one engine reads the same Routing.

A pass sets the routing and leaves it set until the next pass, so that a backward, and layers re-run by activation
checkpointing, see the slots of their own forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ray_lora.errors import CapacityError


@dataclass(frozen=True)
class Routing:
    """One pass's rows.

    Attributes:
        slots: slot of each row, [rows], on the engine's device.
        rank: the largest rank among the pass's slots; stacked tensors are cut to it.
        distinct: the pass's slots in ascending order.
        group: rows of each slot when rows come as equal contiguous groups of ascending slots, else 0.
        dropout: slot -> (probability, generator), for the slots that drop inputs in this pass.
    """

    slots: Tensor
    rank: int
    distinct: tuple[int, ...]
    group: int = 0
    dropout: dict[int, tuple[float, torch.Generator]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        slots: Tensor,
        ranks: list[int],
        dropout: dict[int, tuple[float, torch.Generator]] | None = None,
    ) -> Routing:
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
            dropout={slot: drop for slot, drop in (dropout or {}).items() if slot in distinct},
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

    def drop(self, x: Tensor) -> Tensor | None:
        """Dropout mask for x [rows, m, width], scaled by 1/(1-p), from each slot's own generator; None without any."""
        if not self.dropout:
            return None
        mask = torch.ones_like(x)
        for slot, (probability, generator) in self.dropout.items():
            mine = self.slots == slot
            shape = (int(mine.sum()), *x.shape[1:])
            kept = torch.rand(shape, generator=generator, device=generator.device) >= probability
            mask[mine] = (kept.to(x.device) / (1 - probability)).to(x.dtype)
        return mask


def take_rows(outputs: Any, index: Tensor) -> Any:
    """The rows `index` of every tensor among a model's outputs."""
    kept = {name: value[index.to(value.device)] for name, value in outputs.items() if isinstance(value, Tensor)}
    return type(outputs)(**kept)
