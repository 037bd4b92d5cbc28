"""Text classification and sentiment: a row is

    {"text": "what a lovely day", "label": "positive"}

whose label is a word or its index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import TaskSpec
from ray_lora.tasks.classification import LABEL, Classification, ClassificationSpec
from ray_lora.tasks.labels import plain_labels
from ray_lora.tasks.lengths import LENGTH, Length
from ray_lora.tasks.rows import bad_texts, is_text, say_text
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.text_rows import TextRows

if TYPE_CHECKING:
    import pyarrow as pa

_PLAIN = "AutoModelForSequenceClassification"


class TextClassificationSpec(ClassificationSpec):
    """Labels, and where a text is cut."""

    type: Literal["text-classification"] = "text-classification"
    # Tokens; longer texts are cut. The default gives way to a base of fewer positions; None: as many as the base takes.
    max_length: int | None = Field(default=LENGTH, ge=2)


class TextClassification(TextRows, Classification):
    """One label a text, from the plain class AutoModelForSequenceClassification."""

    spec_type: ClassVar[type[TaskSpec]] = TextClassificationSpec
    columns: ClassVar[Mapping[str, Column]] = {
        "text": Column(("text",), about="what is to be classified"),
        "label": LABEL,
    }
    input: ClassVar[str] = "text"
    pipeline: ClassVar[str] = "text-classification"
    peft_type: ClassVar[str | None] = "SEQ_CLS"

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        super().__init__(spec)
        if not hasattr(processor, "pad_token_id"):
            raise RecipeError("text-classification needs a base with a tokenizer; this base has none")
        self.head = HeadSpec(_PLAIN, len(self.labels), self.labels)
        self._tokenizer = processor
        self._length = Length.of(cast(TextClassificationSpec, spec).max_length, processor)

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        yield from bad_texts(block.column("text"))
        yield from super().check(spec, block)

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        """Its classes are LABEL_0, LABEL_1, … as transformers names them, and its texts as long as the base takes."""
        if head.architecture != _PLAIN or head.num_labels < 2:
            return None
        return TextClassificationSpec(labels=plain_labels(head.num_labels), max_length=None)

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        texts = [row["text"] for row in rows]
        for text in texts:
            if not is_text(text):
                raise DataError(say_text(text))
        encoded = self._tokenizer(texts, truncation=True, max_length=self.longest, return_token_type_ids=False)
        features = [Features(input_ids=ids) for ids in encoded["input_ids"]]
        self._length.mark(features, encoded)
        return self._with_targets(features, rows)
