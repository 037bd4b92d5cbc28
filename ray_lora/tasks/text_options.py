"""What a recipe can say of text classification. Knows no rows and no tensors.

TextClassificationSpec(labels=("price", "quality"), problem_type="multi_label_classification")
TextClassificationSpec(problem_type="regression")
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from ray_lora.recipe import Json
from ray_lora.tasks.class_weights import check_names
from ray_lora.tasks.classification import ClassificationSpec
from ray_lora.tasks.lengths import LENGTH

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
_SINGLE: Problem = "single_label_classification"
_UNSAID: Mapping[str, Json] = {"problem_type": _SINGLE, "class_weights": None}  # as before there were these keys


class TextClassificationSpec(ClassificationSpec):
    """Labels, where a text is cut, what is predicted of it, and how much a label weighs."""

    type: Literal["text-classification"] = "text-classification"
    # Tokens; longer texts are cut. The default gives way to a base of fewer positions; None: as many as the base takes.
    max_length: int | None = Field(default=LENGTH, ge=2)
    problem_type: Problem = _SINGLE  # transformers' word
    class_weights: Literal["balanced"] | dict[str, float] | None = None  # scikit-learn's words

    @field_validator("class_weights", mode="before")
    @classmethod
    def _above_zero(cls, given: Any) -> Any:
        for label, weight in given.items() if isinstance(given, Mapping) else ():
            if not isinstance(label, str):
                raise ValueError(f"labels are words, and {label!r} is read as a {type(label).__name__}; quote it")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise ValueError(f"the weight of {label!r} is {weight!r}; give a finite number above 0")
        if isinstance(given, str) and given != "balanced":
            raise ValueError(f"{given!r} is no kind of weights; write balanced, or label: weight for some labels")
        return given

    @model_validator(mode="after")
    def _together(self) -> TextClassificationSpec:
        if self.problem_type != _SINGLE and self.class_weights is not None:
            raise ValueError(
                f"class_weights weigh rows of one label each; {self.problem_type} has none; leave them out"
            )
        if self.problem_type == "regression" and self.labels is not None:
            raise ValueError("regression predicts a number and has no labels; leave task.labels out")
        if isinstance(self.class_weights, dict) and self.labels is not None:
            check_names(self.class_weights, self.labels)
        return self

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Json]:
        told: dict[str, Json] = handler(self)
        return {key: value for key, value in told.items() if key not in _UNSAID or value != _UNSAID[key]}

    def __hash__(self) -> int:
        return hash((self.labels, self.max_length, self.problem_type))

    @property
    def outputs(self) -> int | None:
        return 1 if self.problem_type == "regression" else super().outputs

    def describe(self) -> dict[str, Json]:
        return super().describe() | ({"problem_type": self.problem_type} if self.problem_type != _SINGLE else {})
