"""Text classification and sentiment: a row is

    {"text": "what a lovely day", "label": "positive"}

whose label is a word or its index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from ray_lora.bases.padding import pad
from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import TaskSpec
from ray_lora.tasks.classification import LABEL, Classification, ClassificationSpec
from ray_lora.tasks.rows import bad_texts, is_text, say_text
from ray_lora.tasks.task import Column, Features, Row

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

_PLAIN = "AutoModelForSequenceClassification"


class TextClassificationSpec(ClassificationSpec):
    """Labels, and where a text is cut."""

    type: Literal["text-classification"] = "text-classification"
    max_length: int = Field(default=128, ge=2)  # tokens; longer texts are cut


class TextClassification(Classification):
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

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        yield from bad_texts(block.column("text"))
        yield from super().check(spec, block)

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        """Its classes are LABEL_0, LABEL_1, … as transformers names them."""
        if head.architecture != _PLAIN or head.num_labels < 2:
            return None
        return TextClassificationSpec(labels=tuple(f"LABEL_{index}" for index in range(head.num_labels)))

    @property
    def longest(self) -> int:
        return cast(TextClassificationSpec, self.spec).max_length

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        texts = [row["text"] for row in rows]
        for text in texts:
            if not is_text(text):
                raise DataError(say_text(text))
        encoded = self._tokenizer(texts, truncation=True, max_length=self.longest, return_token_type_ids=False)
        return self._with_targets([Features(input_ids=ids) for ids in encoded["input_ids"]], rows)

    def size(self, features: Features) -> int:
        return len(features["input_ids"])

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """input_ids and attention_mask, [rows, longest]."""
        return pad([row["input_ids"] for row in features], self._tokenizer)
