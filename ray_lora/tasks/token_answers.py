"""Answers of transformers' token-classification pipeline, by its own code, from logits that were computed elsewhere.

It knows one row's windows, logits and pieces, no engines and no files.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from ray_lora.recipe import Json
from ray_lora.tasks.task import Features
from ray_lora.tasks.words import numbered, owned


class Answers(TokenClassificationPipeline):
    """The pipeline behind its model.

    Args:
        tokenizer: a fast one. labels: by class index.
    """

    def __init__(self, tokenizer: Any, labels: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.model: Any = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(labels))))

    def of(self, windows: Sequence[Features], logits: Sequence[Tensor], options: tuple[str, Sequence[str]]) -> Json:
        """A row's pieces or entities, from the logits of its windows, [pieces, labels] float32 each.

        Of entities in what two windows read, the pipeline's own rule keeps the longer or surer one; a piece is the
        window's that has most text around it, and counted through all windows.
        """
        strategy, ignored = AggregationStrategy(options[0]), list(options[1])
        told = [_outputs(window, mine) for window, mine in zip(windows, logits, strict=True)]
        with warnings.catch_warnings():
            # a byte-level tokenizer has no words of its own: what lies between blanks is one
            warnings.filterwarnings("ignore", "Tokenizer does not support real words")
            if len(windows) == 1 or strategy != AggregationStrategy.NONE:
                found: Any = self.postprocess(told, strategy, ignored)  # type: ignore[no-untyped-call]
            else:
                each = [self.postprocess([mine], strategy, ignored) for mine in told]  # type: ignore[no-untyped-call]
                found = [
                    {**piece, "index": first + piece["index"]}
                    for pieces, first, (begin, end) in zip(each, numbered(windows), owned(windows), strict=True)
                    for piece in pieces
                    if begin <= piece["start"] < end
                ]
        return [{**piece, "score": float(piece["score"])} for piece in found]


def _outputs(window: Features, logits: Tensor) -> dict[str, Any]:
    """What the pipeline's `_forward` would hand on."""
    return {
        "logits": logits[None],
        "sentence": window["text"],
        "input_ids": [window["input_ids"]],
        "offset_mapping": [window["offsets"]],
        "special_tokens_mask": torch.tensor([window["special"]]),
    }
