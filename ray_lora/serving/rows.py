"""Rows of a batch: what one request asks of the engine, and its answers from what the engine found.

asked = Asked(features, slot, task, parameters)
answers = asked.answers(await batcher.submit(name, asked.rows))

A row that is read in several windows is several rows of the batch, so that a long text takes turns with the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_lora.inference.windows import Windowed, spread_windows
from ray_lora.recipe import Json
from ray_lora.tasks import Features, Task


@dataclass(frozen=True)
class Row:
    """One row of a batch; without a task it asks for the bare base's embedding.

    Attributes:
        piece: whether it is one of several windows of a longer row, which gets a part of an answer.
    """

    features: Features
    slot: int = 0
    task: Task | None = None
    parameters: Mapping[str, Json] = field(default_factory=dict)
    piece: bool = False


class Asked:
    """One request's rows for one adapter.

    Attributes:
        rows: of a batch.
    """

    def __init__(self, features: Sequence[Features], slot: int, task: Task, parameters: Mapping[str, Json]) -> None:
        self._features, self._task, self._parameters = features, task, parameters
        spread = spread_windows({slot: task}, features, [slot] * len(features))
        self._windows: list[list[int]] = [[] for _ in features]  # places among `rows`, of each of the request's
        for at, row in enumerate(spread.rows):
            self._windows[row].append(at)
        several = [len(mine) > 1 for mine in self._windows]
        self.rows = [
            Row(window if several[row] else features[row], slot, task, parameters, several[row])
            for window, row in zip(spread.features, spread.rows, strict=True)
        ]

    def answers(self, found: Sequence[Any]) -> list[Json]:
        """The request's answers from those of `rows`."""
        return [
            self._task.whole([found[at] for at in mine], features, self._parameters)
            if len(mine) > 1 and isinstance(self._task, Windowed)
            else found[mine[0]]
            for mine, features in zip(self._windows, self._features, strict=True)
        ]
