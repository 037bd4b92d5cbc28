"""Text classification and sentiment: a row is

    {"text": "what a lovely day", "label": "positive"}
    {"text": "A man sleeps.", "text_pair": "Somebody is awake.", "label": "contradiction"}

whose label is a word or its index. With another `problem_type` a row has several labels (`multi_label`), or a number
(`regression`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import RecipeError
from ray_lora.recipe import TaskSpec
from ray_lora.tasks.class_weights import balanced, check_names, count, in_order
from ray_lora.tasks.classification import LABEL, Classification
from ray_lora.tasks.labels import plain_labels
from ray_lora.tasks.multi_label import MultiLabelTexts
from ray_lora.tasks.regression import RegressionTexts
from ray_lora.tasks.task import Column, Features, Row, Task
from ray_lora.tasks.text_options import TextClassificationSpec
from ray_lora.tasks.texts import TEXTS, Texts, bad_rows

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TextClassification", "TextClassificationSpec"]

_PLAIN = "AutoModelForSequenceClassification"


class TextClassification(Texts, Classification):
    """One label a text, from the plain class AutoModelForSequenceClassification."""

    spec_type: ClassVar[type[TaskSpec]] = TextClassificationSpec
    columns: ClassVar[Mapping[str, Column]] = {**TEXTS, "label": LABEL}

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        options = cast(TextClassificationSpec, spec)
        Classification.__init__(self, spec)
        Texts.__init__(self, options.max_length, processor)
        self.head = HeadSpec(_PLAIN, len(self.labels), self.labels)
        weights = _weights(spec)
        if weights == "balanced":
            raise RecipeError("task.class_weights are not known; let the training data give them, or write them")
        self.weights = None if weights is None else in_order(weights, self.labels)

    @classmethod
    def of(cls, spec: TaskSpec) -> type[Task]:
        """The class that does what these options ask for."""
        kinds: dict[str, type[Task]] = {
            "single_label_classification": TextClassification,
            "multi_label_classification": MultiLabelTexts,
            "regression": RegressionTexts,
        }
        problem = getattr(spec, "problem_type", None)
        return cls if problem is None else kinds[problem]  # somebody's own task has options of its own

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> Any:
        """What `Classification` learns; where weights are to be balanced, beside it rows of each label."""
        options, taught = cast(TextClassificationSpec, spec), super().learn(spec, block)
        if _weights(spec) != "balanced":
            return taught
        return taught, count(block.column("label").to_pylist(), options.labels)

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[Any]) -> TaskSpec:
        weights = _weights(spec)
        if weights != "balanced":
            known = cast(TextClassificationSpec, super().merge(spec, learned))
            if weights is not None:
                _check(weights, known.labels or ())
            return known
        parts = list(learned)
        known = cast(TextClassificationSpec, super().merge(spec, [taught for taught, _ in parts]))
        counted = balanced([counts for _, counts in parts], known.labels or ())
        return known.model_copy(update={"class_weights": counted})

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        yield from bad_rows(block)
        yield from super().check(spec, block)

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        """Its classes are LABEL_0, LABEL_1, … as transformers names them, and its texts as long as the base takes. One
        output is a number, as transformers' class trains it."""
        if head.architecture != _PLAIN:
            return None
        if head.num_labels < 2:
            return TextClassificationSpec(problem_type="regression", max_length=None)
        return TextClassificationSpec(labels=plain_labels(head.num_labels), max_length=None)

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        return self._with_targets(self.encode_texts(rows), rows)


def _weights(spec: TaskSpec) -> Mapping[str, float] | Literal["balanced"] | None:
    """The options' `class_weights`; somebody's own task, which is this one under other options, may have none."""
    weights: Mapping[str, float] | Literal["balanced"] | None = getattr(spec, "class_weights", None)
    return weights


def _check(weights: Mapping[str, float], labels: Sequence[str]) -> None:
    try:
        check_names(weights, labels)
    except ValueError as error:
        raise RecipeError(f"task.{error}") from None
