"""What a recipe can say of text generation. Knows no rows and no tensors.

TextGenerationSpec(rows="messages", max_length=1024)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ray_lora.recipe import Json, TaskSpec

LENGTH = 512  # tokens, where nobody says more; gives way to a base of fewer positions
Rows = Literal["prompt", "text", "messages"]
Normalisation = Literal["squad", "lower", "none"]
_UNSAID: Mapping[str, Json] = {"answer_tokens": None, "normalisation": "squad"}


class TextGenerationSpec(TaskSpec):
    """What a row is, of which of its tokens the loss is, where it is cut, and whether answers are compared whole."""

    type: Literal["text-generation"] = "text-generation"
    rows: Rows = "prompt"  # prompt and completion, text, or messages: the column that a row has
    loss: Literal["answer", "all"] = "answer"  # of the answer's tokens, or of the prompt's too
    # Tokens of prompt and answer. The default gives way to a base of fewer positions; None: as many as the base takes.
    max_length: int | None = Field(default=LENGTH, ge=2)
    # Tokens within which scores have an answer written to its end, for `exact_match`; None: none is written.
    answer_tokens: int | None = Field(default=None, ge=2, le=256)
    normalisation: Normalisation = "squad"  # what `exact_match` leaves out of texts (`tasks/exact_match.py`)

    @model_validator(mode="after")
    def _together(self) -> TextGenerationSpec:
        if self.answer_tokens is not None and self.rows == "text":
            raise ValueError("answer_tokens is of answers, and rows: text have none; leave it out, or say rows: prompt")
        if self.answer_tokens is None and self.normalisation != _UNSAID["normalisation"]:
            raise ValueError("normalisation is of exact_match, for which nothing is written; set answer_tokens too")
        return self

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Json]:
        told: dict[str, Json] = handler(self)
        return {key: value for key, value in told.items() if key not in _UNSAID or value != _UNSAID[key]}

    def describe(self) -> dict[str, Json]:
        return {"rows": self.rows}
