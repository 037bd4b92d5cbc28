"""What one worker of a pack holds of the rows, and how the pack's workers meet. Knows nothing of engines or Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ray_lora.tasks import Features


@dataclass(frozen=True)
class Split:
    """One worker's rows of one split.

    Attributes:
        rows: encoded rows by their number in the whole split.
        total: rows of the whole split, over all workers.
    """

    rows: Mapping[int, Features]
    total: int


@dataclass(frozen=True)
class Splits:
    """The rows a job trains on and is scored on."""

    train: Split
    validation: Split | None = None


@dataclass(frozen=True)
class Group:
    """The workers of one pack: sums tensors in place, gathers objects. Alone, both are the identity."""

    rank: int = 0
    world: int = 1
    all_reduce: Callable[[Tensor], None] = lambda tensor: None
    gather: Callable[[Any], list[Any]] = lambda value: [value]


ALONE = Group()  # the only worker of its pack
