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

from ray_lora.engine import AdapterEngine, take_rows
from ray_lora.inference.predict import by_tokens, chunks, of_one_size
from ray_lora.tasks.task import Features, Task

_TOKENS = {"cpu": 2048, "cuda": 16384}  # of a pass of joined rows


@dataclass(frozen=True)
class Kept:
    """One pass over rows of the bare base.

    Attributes:
        rows: their places among the rows asked for.
        features: theirs. inputs: the pass's, each [rows, ...]. hidden: the backbone's outputs, what heads of one class
            read of them.
    """

    rows: tuple[int, ...]
    features: Sequence[Features]
    inputs: Mapping[str, Tensor]
    hidden: Any


def keep(engine: AdapterEngine, task: Task, features: Sequence[Features], max_rows: int = 64) -> list[Kept]:
    """The bare base's outputs for rows, as heads of the task's class read them. The engine's adapters are not used."""
    lengths = engine.sharing_under(task.head).lengths
    sizes, owners = [task.size(row) for row in features], [0] * len(features)
    if lengths == "joined":
        parts = by_tokens(sizes, owners, _TOKENS.get(engine.base.device.type, _TOKENS["cuda"]))
    elif features:
        parts = (of_one_size if lengths == "equal" else chunks)(sizes, owners, max_rows)
    else:
        parts = []
    kept = []
    for rows in parts:
        chosen = [features[row] for row in rows]
        inputs = engine.cast(task.collate(chosen))
        with torch.no_grad():  # not in inference mode: a backward reads what is kept
            hidden = engine.hidden(inputs, torch.zeros(len(rows), dtype=torch.long), task.head)
        kept.append(Kept(tuple(rows), chosen, inputs, take_rows(hidden, torch.arange(len(rows)))))
    return kept
