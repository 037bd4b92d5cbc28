"""Text classification and sentiment: a row is

    {"text": "what a lovely day", "label": "positive"}

whose label is a word or its index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import TaskSpec
from ray_lora.tasks.classification import Classification
from ray_lora.tasks.task import Features, Row, label_index


class TextClassification(Classification):
    """One label a text, from the plain class AutoModelForSequenceClassification."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    peft_type: ClassVar[str | None] = "SEQ_CLS"

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        super().__init__(spec)
        if not hasattr(processor, "pad_token_id"):
            raise RecipeError("text-classification needs a base with a tokenizer; this base has none")
        self.head = HeadSpec("AutoModelForSequenceClassification", len(self.labels))
        self._tokenizer = processor

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        texts = [row["text"] for row in rows]
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"text {text!r} is empty or not a string; give a non-empty string")
        encoded = self._tokenizer(texts, truncation=True, max_length=self.spec.max_length, return_token_type_ids=False)
        features = [Features(input_ids=ids) for ids in encoded["input_ids"]]
        for feature, row in zip(features, rows, strict=True):
            if row.get("label") is not None:
                feature["labels"] = label_index(row["label"], self.labels)
        return features

    def size(self, features: Features) -> int:
        return len(features["input_ids"])

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """input_ids and attention_mask, [rows, longest]."""
        lengths = torch.tensor([len(row["input_ids"]) for row in features])
        ids = torch.full((len(features), int(lengths.max())), self._tokenizer.pad_token_id or 0)
        for row, feature in enumerate(features):
            ids[row, : len(feature["input_ids"])] = torch.tensor(feature["input_ids"])
        mask = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
        return {"input_ids": ids, "attention_mask": mask.long()}
