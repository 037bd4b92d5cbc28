"""The one interface a task implements.

A task is handed rows of its own kind and never learns which adapters they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from torch import Tensor

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, did_you_mean
from ray_lora.recipe import Json, TaskSpec

Row = Mapping[str, Any]  # one row of the data, under the task's column names
Features = dict[str, Any]  # one row's model inputs, and "labels" when the row has them


class Task(Protocol):
    """What is predicted and how it is scored.

    Attributes:
        columns: the columns of a training row.
        metric: the metric that decides by default; metrics: every metric and whether more is better.
        peft_type: PEFT's task_type of a saved adapter.
        head: the plain transformers class that answers.
    """

    columns: ClassVar[tuple[str, ...]]
    metric: ClassVar[str]
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]]
    peft_type: ClassVar[str | None]
    spec: TaskSpec
    head: HeadSpec

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        """Model inputs of rows; a row that cannot be read is a DataError that says which and why."""
        ...

    def size(self, features: Features) -> int:
        """How much of a pass this row takes (tokens, pixels); rows of like size are computed together."""
        ...

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """The backbone's inputs, [rows, ...], padded to the longest row."""
        ...

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """(sum of losses, number of terms) for each row, both [rows]; an adapter's loss is its rows' sum over count."""
        ...

    def check(self, parameters: Mapping[str, Json]) -> None:
        """RecipeError unless `decode` takes these parameters; called before anything is computed."""
        ...

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        """Each row's answer in the shape of the Hugging Face pipeline of this task."""
        ...

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Metrics of predictions made with no parameters."""
        ...


def label_index(label: Any, labels: Sequence[str]) -> int:
    """The class index of a label given as a word or as an index.

    Raises:
        DataError: it is neither.
    """
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool) and 0 <= int(label) < len(labels):
        return int(label)
    near = did_you_mean(str(label), labels)
    allowed = ", ".join(map(repr, labels))
    raise DataError(f"label {label!r} is not one of {allowed} nor an index below {len(labels)}{near}")
