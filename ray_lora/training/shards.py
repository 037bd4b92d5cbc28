"""What one worker of a pack holds of the rows, and how the pack's workers meet. Knows nothing of engines or Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ray_lora.tasks import Features, Task
from ray_lora.tasks.rows import count_cut


@runtime_checkable
class OnDisk(Protocol):
    """What rows have beside a mapping's methods that lie on a disk."""

    def sizes(self) -> Sequence[int]:
        """What `task.size` gives for each row, in the rows' order."""
        ...

    def cut(self) -> Counter[str]:
        """How many rows are cut, by why."""
        ...

    def prefetch(self, rows: Sequence[int]) -> None:
        """Begin to read those of these rows that are here."""
        ...


@dataclass(frozen=True)
class Split:
    """One worker's rows of one split.

    Attributes:
        rows: encoded rows by their number in the whole split.
        total: rows of the whole split, over all workers.
    """

    rows: Mapping[int, Features]
    total: int

    def sizes(self, task: Task) -> list[int]:
        """What `task.size` gives for each of these rows, in their order."""
        if isinstance(self.rows, OnDisk):
            return list(self.rows.sizes())
        return [task.size(features) for features in self.rows.values()]

    def cut(self) -> Counter[str]:
        """How many of these rows are cut, by why."""
        return self.rows.cut() if isinstance(self.rows, OnDisk) else count_cut(self.rows.values())

    def prefetch(self, rows: Sequence[int]) -> None:
        """Begin to read rows that will be asked for next, where they are on a disk."""
        if isinstance(self.rows, OnDisk):
            self.rows.prefetch(rows)


@dataclass(frozen=True)
class Splits:
    """The rows a job trains on and is scored on.

    Attributes:
        groups: of each validation row of all workers, by its number; empty where nobody asked.
        identity: `{"train.rows": "649", "train.sha256": ...}` of both splits; empty where nobody took it.
    """

    train: Split
    validation: Split | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    groups: Sequence[str] = ()


@dataclass(frozen=True)
class Group:
    """The workers of one pack: sums tensors in place, gathers objects. Alone, both are the identity."""

    rank: int = 0
    world: int = 1
    all_reduce: Callable[[Tensor], None] = lambda tensor: None
    gather: Callable[[Any], list[Any]] = lambda value: [value]


ALONE = Group()  # the only worker of its pack
