"""Answers of transformers' token-classification pipeline, by its own code, from logits that were computed elsewhere.

It knows one row's logits and pieces, no engines and no files.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers import TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from ray_lora.recipe import Json
from ray_lora.tasks.task import Features


class Answers(TokenClassificationPipeline):
    """The pipeline behind its model.

    Args:
        tokenizer: a fast one. labels: by class index.
    """

    def __init__(self, tokenizer: Any, labels: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.model: Any = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(labels))))

    def of(self, row: Features, logits: Tensor, options: tuple[str, Sequence[str]]) -> Json:
        """The row's pieces or entities, from logits [pieces, labels] float32."""
        import torch

        strategy, ignored = options
        known = {
            "logits": logits[None],
            "sentence": row["text"],
            "input_ids": [row["input_ids"]],
            "offset_mapping": [row["offsets"]],
            "special_tokens_mask": torch.tensor([row["special"]]),
        }
        with warnings.catch_warnings():
            # a byte-level tokenizer has no words of its own: what lies between blanks is one
            warnings.filterwarnings("ignore", "Tokenizer does not support real words")
            found: Any = self.postprocess([known], AggregationStrategy(strategy), list(ignored))  # type: ignore[no-untyped-call]
        return [{**piece, "score": float(piece["score"])} for piece in found]
