"""What a recipe can say of speech recognition. Knows no rows and no tensors.

SpeechRecognitionSpec(language="it")
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.speech.wording import Normalisation


class SpeechRecognitionSpec(TaskSpec):
    """In which language words are written, how long they may be, and how they are compared."""

    type: Literal["automatic-speech-recognition"] = "automatic-speech-recognition"
    language: str | None = None  # of a base that knows several: its code ("it") or name; null where it knows one
    max_length: int | None = Field(default=None, ge=4)  # tokens of a text and what begins it; null: what the base takes
    overlap: float | None = Field(default=None, ge=0)  # seconds that windows of a long sound share, at either end
    normalisation: Normalisation = "lower"  # what scores leave out of texts

    def describe(self) -> dict[str, Json]:
        return {} if self.language is None else {"language": self.language}
