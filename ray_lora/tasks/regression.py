"""Texts with a number each: a row is

    {"text": "what a lovely day", "label": 0.8}
    {"text": "A man sleeps.", "text_pair": "A man is asleep.", "label": 4.8}

The plain class has one output then, and an answer is what it says: {"label": "LABEL_0", "score": 0.79}.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.labels import plain_labels
from ray_lora.tasks.pictures import scatter
from ray_lora.tasks.rows import shown
from ray_lora.tasks.scored import Scored
from ray_lora.tasks.soft_targets import SoftNumber
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.text_options import TextClassificationSpec
from ray_lora.tasks.texts import TEXTS, Texts, bad_rows

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

_TARGET = "labels"  # the number in a row's features
_MOST = 1e16  # float32 holds sums of its square
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)


class RegressionTexts(Texts, Scored, SoftNumber):
    """A number a text, from the plain class AutoModelForSequenceClassification."""

    spec_type: ClassVar[type[TaskSpec]] = TextClassificationSpec
    columns: ClassVar[Mapping[str, Column]] = {**TEXTS, "label": Column(("number",), "training", "a finite number")}
    function: ClassVar[str] = "none"
    metric: ClassVar[str] = "mse"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"mse": "min", "mae": "min", "pearson": "max"}

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        Texts.__init__(self, cast(TextClassificationSpec, spec).max_length, processor)
        self.spec = spec
        self.labels = plain_labels(1)
        self.head = HeadSpec("AutoModelForSequenceClassification", 1)

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> None:
        return None

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[None]) -> TaskSpec:
        return spec

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        yield from bad_rows(block)
        for row, value in enumerate(block.column("label").to_pylist()):
            try:
                number(value)
            except DataError as error:
                yield row, str(error)

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        """`TextClassification` tells it."""
        return None

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        return [
            feature if row.get("label") is None else feature | {_TARGET: number(row["label"])}
            for feature, row in zip(self.encode_texts(rows), rows, strict=True)
        ]

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Squared differences, as in torch's MSELoss."""
        import torch

        losses = (outputs.logits[:, 0] - torch.tensor(_truth(features)).to(outputs.logits)).square()
        return losses, torch.ones_like(losses)

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """`pearson` is 0 where all numbers or all answers are equal."""
        from sklearn.feature_selection import r_regression
        from sklearn.metrics import mean_absolute_error, mean_squared_error

        truth, guess = _truth(features), [answer["score"] for answer in predictions]
        [pearson] = r_regression([[value] for value in guess], truth)
        return {
            "mse": float(mean_squared_error(truth, guess)),
            "mae": float(mean_absolute_error(truth, guess)),
            "pearson": float(pearson),
        }

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        """`answers`: each row's number and its answer."""
        return scatter("answers", _truth(features), [answer["score"] for answer in predictions])


def _truth(features: Sequence[Features]) -> list[float]:
    return [row[_TARGET] for row in features]


def number(value: Any) -> float:
    """The finite number that a value is, or that a text writes; DataError where it is none, or too large for a loss."""
    known = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if known or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found) and abs(found) > _MOST:
            raise DataError(
                f"label {shown(value)} is beyond {_MOST:.0e}, whose square a loss still holds; scale the labels"
            )
        if math.isfinite(found):
            return found
    raise DataError(f"label {shown(value)} is no finite number; write one, such as 3.5")
