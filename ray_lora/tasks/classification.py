"""What tasks of one label a row share: labels, the loss, the metrics and the picture. Answers are `Scored`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import field_validator

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.labels import label_index, unlike_a_label
from ray_lora.tasks.pictures import confusion
from ray_lora.tasks.rows import shown
from ray_lora.tasks.scored import Scored
from ray_lora.tasks.soft_targets import SoftLabel
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.teaching import NOTHING, Taught, settle, teach, wrong_labels

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

METRICS: Mapping[str, Literal["max", "min"]] = {"accuracy": "max", "f1_macro": "max"}
LABEL = Column(("label",), "training", "a label, or its index among labels that are no numbers")
_TARGET = "labels"  # the class index in a row's features


class ClassificationSpec(TaskSpec):
    """`labels: null` takes the labels from the training data: whole numbers by value, others by word.

    Attributes:
        least: how many labels there must be.
    """

    least: ClassVar[int] = 2
    labels: tuple[str, ...] | None = None

    @field_validator("labels", mode="before")
    @classmethod
    def _written_as_words(cls, labels: Any) -> Any:
        for label in labels if isinstance(labels, (list, tuple)) else ():
            if not isinstance(label, str):
                kind = type(label).__name__
                raise ValueError(
                    f"labels are words, and {label!r} is read as a {kind}; put each in quotes: "
                    "labels: ['no', 'yes', '1', '2']"
                )
        return labels

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and (len(labels) < cls.least or len(set(labels)) < len(labels)):
            many = "two different words" if cls.least == 2 else "one word, and different ones"
            raise ValueError(f"labels must be at least {many}")
        for label in labels or ():
            if why := unlike_a_label(label):
                raise ValueError(f"label {shown(label)} {why}")
        return labels

    @property
    def outputs(self) -> int | None:
        return None if self.labels is None else len(self.labels)

    def describe(self) -> dict[str, Json]:
        return {} if self.labels is None else {"labels": list(self.labels)}


class Labelled:
    """What all tasks share whose options are labels, said or taught by the rows."""

    def __init__(self, spec: TaskSpec) -> None:
        options = cast(ClassificationSpec, spec)
        if options.labels is None:
            raise RecipeError("task.labels is not set; list the labels, or let the training data give them")
        self.spec = spec
        self.labels = options.labels

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[Taught]) -> TaskSpec:
        options = cast(ClassificationSpec, spec)
        if options.labels is not None:
            return spec
        return spec.model_copy(update={"labels": settle(learned, options.least)})


def agreement(truth: Sequence[int], guess: Sequence[int], labels: int) -> dict[str, float]:
    """`accuracy`, and `f1_macro`: scikit-learn's, over the labels that are the truth or an answer. Counted here, as its
    checks of each call take a hundred times as long, and intervals are of thousands of calls.

    Args:
        truth, guess: class indices below `labels`, at least one.
    """
    import numpy as np

    true, said = np.asarray(truth), np.asarray(guess)
    right = true == said
    hits = np.bincount(true[right], minlength=labels)
    seen = np.bincount(true, minlength=labels) + np.bincount(said, minlength=labels)
    there = seen > 0
    return {"accuracy": float(right.mean()), "f1_macro": float((2 * hits[there] / seen[there]).mean())}


def taught(spec: TaskSpec, values: Iterable[tuple[int, Any]]) -> Taught:
    """The labels of a block's (row, value), where the options do not say them, and the first rows that have none."""
    return NOTHING if cast(ClassificationSpec, spec).labels is not None else teach(values)


class Classification(Labelled, Scored, SoftLabel):
    """One label a row, from logits [rows, labels].

    Attributes:
        weights: how much a row of each label weighs in the loss; None: all alike.
    """

    weights: Sequence[float] | None = None
    calibrates: ClassVar[bool] = True
    metric: ClassVar[str] = "accuracy"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = METRICS

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> Taught:
        """The block's labels, where the options do not say them, and the first rows that have none."""
        return taught(spec, enumerate(block.column("label").to_pylist()))

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        """Rows whose label is none of the options', and the first row of each label that looks like another one."""
        labels = cast(ClassificationSpec, spec).labels or ()
        yield from wrong_labels(enumerate(block.column("label").to_pylist()), labels)

    def targets(self, features: Sequence[Features]) -> list[int]:
        """The class index of each row."""
        return [row[_TARGET] for row in features]

    def answers(self, targets: Sequence[int]) -> list[Json]:
        """The answers that would be sure of these class indices."""
        return [{"label": self.labels[target], "score": 1.0} for target in targets]

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        import torch
        import torch.nn.functional as F

        targets = torch.tensor(self.targets(features), device=outputs.logits.device)
        losses = F.cross_entropy(outputs.logits, targets, reduction="none")
        if self.weights is None:
            return losses, torch.ones_like(losses)
        terms = torch.tensor(self.weights).to(losses)[targets]  # as torch's CrossEntropyLoss(weight=...) takes the mean
        return losses * terms, terms

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        return agreement(self.targets(features), self._guesses(predictions), len(self.labels))

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        """`confusion_matrix`: rows are the truth, columns the answers."""
        truth = [self.labels[target] for target in self.targets(features)]
        return confusion(self.labels, truth, [answer["label"] for answer in predictions])

    def _guesses(self, predictions: Sequence[Json]) -> list[int]:
        index = {label: number for number, label in enumerate(self.labels)}
        return [index[answer["label"]] for answer in predictions]

    def _with_targets(self, features: Sequence[Features], rows: Sequence[Row]) -> list[Features]:
        """Rows' inputs, and beside them the class index of those that have a label."""
        return [
            feature if row.get("label") is None else feature | {_TARGET: label_index(row["label"], self.labels)}
            for feature, row in zip(features, rows, strict=True)
        ]
