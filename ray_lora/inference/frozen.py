"""What the frozen base gives a head for rows: computed once, kept, and read as often as a head is fitted.

    kept = keep(engine, task, features)
    for part in kept: outputs = head(part.hidden, part.inputs)

It knows bases and tasks, not how heads are fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_lora.engine import AdapterEngine, take_rows, tensors_in
from ray_lora.inference.predict import cut_passes
from ray_lora.tasks.task import Features, Task

_STRETCH = 256  # rows that are cut into passes together, so that a bound is seen before it is far behind


@dataclass(frozen=True)
class Kept:
    """One pass over rows of the bare base, of which a long one's windows are rows of their own.

    Attributes:
        rows: their places among the rows asked for.
        features: theirs. inputs: the pass's, each [rows, ...]. hidden: the backbone's outputs, what heads of one class
            read of them.
    """

    rows: tuple[int, ...]
    features: Sequence[Features]
    inputs: Mapping[str, Tensor]
    hidden: Any

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in [*self.inputs.values(), *tensors_in(self.hidden)])


def keep(
    engine: AdapterEngine, task: Task, features: Sequence[Features], *, max_rows: int = 64, most: float = float("inf")
) -> list[Kept]:
    """The bare base's outputs for rows, as heads of the task's class read them. The engine's adapters are not used.

    Args:
        features: rows, or the windows of long ones.
        max_rows: rows in one pass.
        most: bytes to be kept; the rows behind are left out.
    """
    lengths = engine.sharing_under(task.head).lengths
    kept: list[Kept] = []
    for begin in range(0, len(features), _STRETCH):
        part = features[begin : begin + _STRETCH]
        sizes = [task.size(row) for row in part]
        for rows in cut_passes(engine, lengths, sizes, [0] * len(part), max_rows):
            kept.append(_pass(engine, task, [begin + row for row in rows], features))
        if sum(one.bytes for one in kept) >= most:
            break
    return kept


def _pass(engine: AdapterEngine, task: Task, rows: Sequence[int], features: Sequence[Features]) -> Kept:
    chosen = [features[row] for row in rows]
    inputs = engine.cast(task.collate(chosen))
    with torch.no_grad():  # not in inference mode: a backward reads what is kept
        hidden = engine.hidden(inputs, torch.zeros(len(rows), dtype=torch.long), task.head)
    return Kept(tuple(rows), chosen, inputs, take_rows(hidden, torch.arange(len(rows))))
