"""What a request may ask of a text that Whisper writes, and which tokens may come in it.

check(base, {"return_timestamps": True}, most=448, prompt=2)
allowed(base, timestamps=True)           # transformers' own rules, of the base's generation config

It knows a base's numbers and no sounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_lora.bases.speech import Speech
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json
from ray_lora.tasks.speech.language import prompt_of

PARAMETERS = ("language", "max_new_tokens", "return_timestamps", "temperature")


def check(base: Speech, parameters: Mapping[str, Json], room: int) -> None:
    """RecipeError unless a text can be written so.

    Args:
        room: tokens that a text may have.
    """
    unknown = sorted(set(parameters) - set(PARAMETERS))
    if unknown:
        raise RecipeError(f"parameters {unknown} are not known to this task; it takes {', '.join(PARAMETERS)}")
    timestamps = parameters.get("return_timestamps", False)
    if not isinstance(timestamps, bool) and timestamps != "word":
        raise RecipeError(f"return_timestamps is {timestamps!r}; it must be true, false or 'word'")
    if timestamps and base.no_timestamps is None:
        raise RecipeError("this base writes no timestamps; leave return_timestamps out")
    if timestamps == "word" and not base.aligned:
        raise RecipeError(
            "this base does not say which of its heads follow the sound (alignment_heads of generation_config.json), "
            "so it gives no times of words; ask for return_timestamps true, or add them"
        )
    temperature = parameters.get("temperature")
    if temperature not in (None, 0) or isinstance(temperature, bool):
        raise RecipeError(f"temperature is {temperature!r}; the likeliest words are written, which is 0: leave it out")
    most = parameters.get("max_new_tokens")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= room):
        raise RecipeError(f"max_new_tokens is {most!r}; it must be a whole number from 1 to {room}")
    if parameters.get("language") is not None:
        prompt_of(base, parameters["language"])


def allowed(base: Speech, timestamps: bool) -> list[Any]:
    """transformers' processors of scores, in their order; `begin_index` is to be set: tokens that begin a text."""
    from transformers import (
        SuppressTokensAtBeginLogitsProcessor,
        SuppressTokensLogitsProcessor,
        WhisperTimeStampLogitsProcessor,
    )

    found: list[Any] = []
    if base.suppressed_first:
        found.append(SuppressTokensAtBeginLogitsProcessor(list(base.suppressed_first), begin_index=0))
    if base.suppressed:
        found.append(SuppressTokensLogitsProcessor(list(base.suppressed)))
    if timestamps:
        found.append(WhisperTimeStampLogitsProcessor(base.settings, begin_index=0))
    return found
