"""Texts of several labels each, or of none: a row is

    {"text": "cheap and fast, but it broke", "label": ["price", "quality"]}

or, where a file holds no lists, {"label": "price|quality"}. Labels are words here, never indices: [0, 1] could as well
be a row of truth values. Each label is answered by itself, with transformers' loss and scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, did_you_mean
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.classification import Labelled
from ray_lora.tasks.labels import Learnt, class_word
from ray_lora.tasks.pictures import bars
from ray_lora.tasks.rows import BLANKS, shown
from ray_lora.tasks.scored import Scored
from ray_lora.tasks.soft_targets import SoftLabels
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.teaching import NOTHING, Taught, wrong_labels
from ray_lora.tasks.text_options import TextClassificationSpec
from ray_lora.tasks.texts import TEXTS, Texts, bad_rows
from ray_lora.tasks.words import is_written_list

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

_TARGET = "labels"  # the class indices in a row's features
_BETWEEN = "|"
_MOST_NAMED = 10  # rows without labels in one message
_SURE = 0.5  # a label of at least this score is answered


class MultiLabelTexts(Texts, Labelled, Scored, SoftLabels):
    """Any number of labels a text, from the plain class AutoModelForSequenceClassification."""

    spec_type: ClassVar[type[TaskSpec]] = TextClassificationSpec
    columns: ClassVar[Mapping[str, Column]] = {
        **TEXTS,
        "label": Column(("labels",), "training", "a list of labels, or labels between |"),
    }
    function: ClassVar[str] = "sigmoid"
    scoring: ClassVar[Mapping[str, Json]] = Scored.full
    calibrates: ClassVar[bool] = True
    metric: ClassVar[str] = "f1_macro"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = dict.fromkeys(("f1_macro", "f1_micro", "accuracy"), "max")

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        Labelled.__init__(self, spec)
        Texts.__init__(self, cast(TextClassificationSpec, spec).max_length, processor)
        self.head = HeadSpec("AutoModelForSequenceClassification", len(self.labels), self.labels)

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> Taught:
        """The block's labels, where the options do not say them, and the first rows whose labels cannot be read."""
        if cast(TextClassificationSpec, spec).labels is not None:
            return NOTHING
        found: dict[str, None] = {}
        wrong: list[tuple[int, str]] = []
        for row, value in enumerate(block.column("label").to_pylist()):
            try:
                found |= dict.fromkeys(words_in(value))
            except DataError as error:
                wrong.append((row, str(error)))
        return list(found), wrong[:_MOST_NAMED]

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        """Rows without a text, whose labels cannot be read, or one of whose labels is none of the options'."""
        yield from bad_rows(block)
        labels = cast(TextClassificationSpec, spec).labels or ()
        read: list[tuple[int, str]] = []
        for row, value in enumerate(block.column("label").to_pylist()):
            try:
                read += ((row, word) for word in words_in(value, labels))
            except DataError as error:
                yield row, str(error)
        seen = -1
        for row, why in wrong_labels(read, Learnt(labels)):  # nothing is an index
            if row != seen:  # the first wrong label of a row
                yield row, why
            seen = row

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        """A folder does not say whether its labels exclude each other; they are taken to."""
        return None

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        return [
            feature if row.get("label") is None else feature | {_TARGET: self._indices(row["label"])}
            for feature, row in zip(self.encode_texts(rows), rows, strict=True)
        ]

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """A term for each label, as in torch's BCEWithLogitsLoss."""
        import torch
        import torch.nn.functional as F

        logits = outputs.logits
        truth = torch.tensor(self._truth(features), dtype=logits.dtype, device=logits.device)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(-1)
        return losses, torch.full_like(losses, len(self.labels))

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Of labels whose score is at least 0.5; `accuracy` counts rows whose labels are all right and complete."""
        from sklearn.metrics import accuracy_score, f1_score

        truth, guess = self._truth(features), self._guesses(predictions)
        f1 = {
            f"f1_{average}": float(f1_score(truth, guess, average=average, zero_division=0.0))
            for average in ("macro", "micro")
        }
        return f1 | {"accuracy": float(accuracy_score(truth, guess))}

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        """`f1`: of each label."""
        from sklearn.metrics import f1_score

        found = f1_score(self._truth(features), self._guesses(predictions), average=None, zero_division=0.0)
        return bars("f1", self.labels, found.tolist())

    def _truth(self, features: Sequence[Features]) -> list[list[int]]:
        """Of each row and label, whether the row has it."""
        return [[int(index in row[_TARGET]) for index in range(len(self.labels))] for row in features]

    def _guesses(self, predictions: Sequence[Json]) -> list[list[int]]:
        return [[int(score >= _SURE) for score in self.probabilities(answer)] for answer in predictions]

    def _indices(self, value: Any) -> list[int]:
        words = words_in(value, self.labels)
        for word in words:
            if word not in self.labels:
                named = ", ".join(map(shown, self.labels))
                raise DataError(f"label {shown(word)} is not one of {named}{did_you_mean(word, self.labels)}")
        return sorted(map(self.labels.index, words))


def words_in(value: Any, labels: Sequence[str] | None = None) -> list[str]:
    """The labels of one row: a list's words, or what stands between | in a text. An empty list has none.

    Args:
        labels: those that were written in a recipe may hold a comma, also in a text.

    Raises:
        DataError: it is no list and no text, one of them names no class, one comes twice, or it cannot be told where a
            label ends.
    """
    if is_written_list(value) and value not in (labels or ()):
        raise DataError(f"labels {shown(value)} are a list written as a text; write a|b, or a list in jsonl or parquet")
    if isinstance(value, str):
        words = value.split(_BETWEEN)
        for word in words:
            if not word.strip(BLANKS):
                raise DataError(
                    f"labels {shown(value)} hold an empty one; write a|b, or in a jsonl or parquet file a list, which "
                    "may be empty"
                )
            if word != word.strip(BLANKS):
                raise DataError(f"label {shown(word)} of {shown(value)} has blanks around it; write a|b")
            if ("," in word or ";" in word) and (labels is None or isinstance(labels, Learnt)):
                raise DataError(
                    f"label {shown(word)} could be several; write a|b, or list it in task.labels if it is one"
                )
    elif isinstance(value, (list, tuple)):
        words = [class_word(word) for word in value]
    else:
        raise DataError(f"labels {shown(value)} are a {type(value).__name__}; give a list of labels, or a text a|b")
    for word in words:
        if words.count(word) > 1:
            raise DataError(f"label {shown(word)} comes twice in {shown(value)}; labels are named, not told by 0 and 1")
    return words
