"""What all classification tasks share: the loss, the answer and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.task import Features

METRICS: Mapping[str, Literal["max", "min"]] = {"accuracy": "max", "f1_macro": "max"}
_FUNCTIONS = ("softmax", "sigmoid", "none")


class Classification:
    """One label a row, from logits [rows, labels]."""

    metric: ClassVar[str] = "accuracy"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = METRICS

    def __init__(self, spec: TaskSpec) -> None:
        if spec.labels is None:
            raise RecipeError("task.labels is not set; list the labels, or let the training data give them")
        self.spec = spec
        self.labels = spec.labels

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        targets = torch.tensor([row["labels"] for row in features], device=outputs.logits.device)
        losses = F.cross_entropy(outputs.logits, targets, reduction="none")
        return losses, torch.ones_like(losses)

    def check(self, parameters: Mapping[str, Json]) -> None:
        _options(parameters)

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        function, top_k = _options(parameters)
        logits = outputs.logits.float()
        if function == "softmax":
            scores = logits.softmax(-1)
        else:
            scores = logits.sigmoid() if function == "sigmoid" else logits
        ranked = [
            sorted(
                ({"label": label, "score": score} for label, score in zip(self.labels, row, strict=True)),
                key=lambda answer: -answer["score"],
            )
            for row in scores.tolist()
        ]
        return [row[0] if top_k is None else row[:top_k] for row in ranked]

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        truth = [row["labels"] for row in features]
        guess = [self.labels.index(answer["label"]) for answer in predictions]
        return {
            "accuracy": float(accuracy_score(truth, guess)),
            "f1_macro": float(f1_score(truth, guess, average="macro", zero_division=0.0)),
        }


def _options(parameters: Mapping[str, Json]) -> tuple[str, int | None]:
    """`function_to_apply` and `top_k`, as in the Hugging Face pipeline."""
    unknown = sorted(set(parameters) - {"function_to_apply", "top_k"})
    if unknown:
        raise RecipeError(f"parameters {unknown} are not known to this task; it takes function_to_apply and top_k")
    function = parameters.get("function_to_apply")
    function = "softmax" if function is None else function
    if function not in _FUNCTIONS:
        raise RecipeError(f"function_to_apply {function!r} must be one of {', '.join(_FUNCTIONS)}")
    top_k = parameters.get("top_k")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise RecipeError(f"top_k {top_k!r} must be a whole number of at least 1")
    return function, top_k
