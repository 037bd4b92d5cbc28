"""What a recipe can say of text generation. Knows no rows and no tensors.

TextGenerationSpec(rows="messages", max_length=1024)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_lora.recipe import Json, TaskSpec

LENGTH = 512  # tokens, where nobody says more; gives way to a base of fewer positions
Rows = Literal["prompt", "text", "messages"]


class TextGenerationSpec(TaskSpec):
    """What a row is, of which of its tokens the loss is, and where it is cut."""

    type: Literal["text-generation"] = "text-generation"
    rows: Rows = "prompt"  # prompt and completion, text, or messages: the column that a row has
    loss: Literal["answer", "all"] = "answer"  # of the answer's tokens, or of the prompt's too
    # Tokens of prompt and answer. The default gives way to a base of fewer positions; None: as many as the base takes.
    max_length: int | None = Field(default=LENGTH, ge=2)

    def describe(self) -> dict[str, Json]:
        return {"rows": self.rows}
