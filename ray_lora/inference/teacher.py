"""Soft targets of rows: what an adapter that teaches says of each, computed once for all that learn from it.

    soft = soft_targets(engine, slot, task, features)        # of each row
    soft[3]                                                   # [terms, classes] float32

It knows an engine and rows, not who learns from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_lora.bounds import size_words
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.inference.predict import forward, passes
from ray_lora.inference.windows import spread_windows
from ray_lora.tasks import Features, Task
from ray_lora.tasks.soft_targets import Distilled

MOST_BYTES = 4 << 30  # of soft targets: a worker shares them in memory


@dataclass(frozen=True)
class SoftTargets:
    """Soft targets of rows, end to end, so that processes of one machine share them.

    Attributes:
        values: [terms of all rows, classes] float32.
        begins: where each row's terms begin, and the end, [rows + 1].
    """

    values: NDArray[np.float32]
    begins: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.float32]]) -> SoftTargets:
        """Those of rows, at least one."""
        return cls(np.concatenate(rows), np.array([0, *accumulate(map(len, rows))], np.int64))

    def __len__(self) -> int:
        return len(self.begins) - 1

    def __getitem__(self, row: int) -> NDArray[np.float32]:
        return self.values[self.begins[row] : self.begins[row + 1]]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return map(self.__getitem__, range(len(self)))


def soft_targets(
    engine: AdapterEngine, slot: int, task: Task, features: Sequence[Features], max_rows: int = 64
) -> SoftTargets:
    """What a slot's adapter says of rows that its own task encoded.

    Raises:
        AdapterError: it says what is no finite number.
        RecipeError: what it says is too much to be kept.
    """
    assert isinstance(task, Distilled)
    tasks, slots = {slot: task}, [slot] * len(features)
    spread = spread_windows(tasks, features, slots)
    parts: list[Any] = [None] * len(spread.features)
    for chunk in passes(engine, tasks, spread.features, spread.slots, max_rows):
        with torch.inference_mode():
            for _, rows, outputs in forward(engine, tasks, spread.features, spread.slots, chunk):
                for row, part in zip(rows, task.logits(outputs, [spread.features[row] for row in rows]), strict=True):
                    parts[row] = part
        _check_bytes(parts)
    if not all(bool(part.isfinite().all()) for part in parts):
        raise AdapterError("the teacher answers what is no finite number; train it again at a lower learning rate")
    of_row: list[list[Tensor]] = [[] for _ in features]
    for row, part in zip(spread.rows, parts, strict=True):
        of_row[row].append(part)
    return SoftTargets.of([task.soft_targets(mine, row).numpy() for mine, row in zip(of_row, features, strict=True)])


def _check_bytes(parts: Sequence[Tensor | None]) -> None:
    """RecipeError where the answers of all windows, by those that are known, take more than `MOST_BYTES`."""
    known = [part.numel() * part.element_size() for part in parts if part is not None]
    whole = len(parts) * sum(known) / len(known)
    if whole > MOST_BYTES:
        raise RecipeError(
            f"what the teacher says of {len(parts):,} rows takes {size_words(whole)}, and at most "
            f"{size_words(MOST_BYTES)} are kept; give fewer rows, or leave distillation.teacher out"
        )
