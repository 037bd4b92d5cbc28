"""Rows that are read in windows, spread over a pass as rows of their own, and their answers put together again.

spread = spread_windows(tasks, features, slots)      # of a task without windows: the rows themselves
answers = spread.whole(tasks, parts, parameters)     # parts: what `decode` made of each window

It knows tasks and rows, no engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ray_lora.recipe import Json
from ray_lora.tasks.task import Features, Task


@runtime_checkable
class Windowed(Protocol):
    """What a `Task` has beside, some of whose rows are longer than what the base reads at once.

    `collate`, `loss` and `decode` are then of windows, and `decode` gives for each whatever `whole` makes an answer of;
    `size` is of a window, and of a row the sum over its windows.
    """

    def windows(self, features: Features) -> Sequence[Features]:
        """The pieces in which a row is read, at least one."""
        ...

    def whole(self, parts: Sequence[Any], features: Features, parameters: Mapping[str, Json]) -> Json:
        """A row's answer from what `decode` gave for each of its windows, in their order."""
        ...


@dataclass(frozen=True)
class Spread:
    """Rows of a pass.

    Attributes:
        given, given_slots: the rows as they were given; pieces: those of them that are one window of a longer row.
        features, slots: of each window, or of each row that is read whole.
        rows: the row that each is of, in ascending order; windows: its number among those of its row, from 0.
    """

    given: Sequence[Features]
    pieces: Collection[int]
    given_slots: Sequence[int]
    features: Sequence[Features]
    slots: Sequence[int]
    rows: Sequence[int]
    windows: Sequence[int]

    def whole(
        self, tasks: Mapping[int, Task], parts: Sequence[Any], parameters: Sequence[Mapping[str, Json]]
    ) -> list[Any]:
        """Each given row's answer (of `pieces` the part that there is) from what `decode` made of its windows.

        Args:
            parameters: of each given row.
        """
        of_row: list[list[Any]] = [[] for _ in self.given]
        for row, part in zip(self.rows, parts, strict=True):
            of_row[row].append(part)
        whole = {slot: task for slot, task in tasks.items() if isinstance(task, Windowed)}
        return [
            whole[slot].whole(of_row[row], feature, parameters[row])
            if slot in whole and row not in self.pieces
            else of_row[row][0]
            for row, (feature, slot) in enumerate(zip(self.given, self.given_slots, strict=True))
        ]


def spread_windows(
    tasks: Mapping[int, Task], features: Sequence[Features], slots: Sequence[int], pieces: Collection[int] = ()
) -> Spread:
    """Every row's windows, of each slot's own task; `pieces`: rows that are one window already."""
    windowed = {slot: task for slot in set(slots) if isinstance(task := tasks[slot], Windowed)}
    if not windowed:
        return Spread(features, pieces, slots, features, slots, range(len(features)), [0] * len(features))
    windows = [
        windowed[slot].windows(feature) if slot in windowed and row not in pieces else (feature,)
        for row, (feature, slot) in enumerate(zip(features, slots, strict=True))
    ]
    rows = [row for row, mine in enumerate(windows) for _ in mine]
    return Spread(
        features,
        pieces,
        slots,
        [window for mine in windows for window in mine],
        [slots[row] for row in rows],
        rows,
        [number for mine in windows for number in range(len(mine))],
    )
