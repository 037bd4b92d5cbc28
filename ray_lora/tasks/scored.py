"""Answers that are labels with scores, as transformers' text and image classification pipelines give them.

    {"label": "positive", "score": 0.98}                    # the best label
    [{"label": "positive", "score": 0.98}, ...]             # with `top_k`: so many, best first; null: all

It knows logits and labels, no rows and no losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json
from ray_lora.tasks.task import Features

_FUNCTIONS = ("softmax", "sigmoid", "none")


class Scored:
    """A score for each label, from logits [rows, labels].

    Attributes:
        function: what makes logits scores where a request does not say.
        labels: the outputs' names, in their order.
    """

    full: ClassVar[Mapping[str, Json]] = {"top_k": 1_000_000}
    function: ClassVar[str] = "softmax"
    labels: tuple[str, ...]

    def probabilities(self, answer: Json) -> list[float]:
        """The scores of an answer with parameters `full`, in the order of the labels."""
        scores = {item["label"]: item["score"] for item in answer}
        return [scores[label] for label in self.labels]

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        self._options(parameters)

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        function, top_k = self._options(parameters)
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
        return [row[0] if top_k == 0 else row[:top_k] for row in ranked]

    def _options(self, parameters: Mapping[str, Json]) -> tuple[str, int | None]:
        """`function_to_apply` and `top_k`, as in the Hugging Face pipeline: null gives all; 0 where it is not said, for
        the best alone."""
        unknown = sorted(set(parameters) - {"function_to_apply", "top_k"})
        if unknown:
            raise RecipeError(f"parameters {unknown} are not known to this task; it takes function_to_apply and top_k")
        function = parameters.get("function_to_apply")
        function = self.function if function is None else function
        if function not in _FUNCTIONS:
            raise RecipeError(f"function_to_apply {function!r} must be one of {', '.join(_FUNCTIONS)}")
        if "top_k" not in parameters:
            return function, 0
        top_k = parameters["top_k"]
        if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
            raise RecipeError(f"top_k {top_k!r} must be a whole number of at least 1, or null for all")
        return function, top_k
