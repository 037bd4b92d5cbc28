"""What stands before a text that Whisper writes: that it begins, its language, and that no timestamps are to come.

    prompt_of(base, None)        # (50257, 50362), of a base that knows English alone
    prompt_of(base, "it")        # (50258, 50274, 50359, 50363)

It knows a base's numbers and no texts.
"""

from __future__ import annotations

from typing import Any

from ray_lora.bases.speech import Speech
from ray_lora.errors import RecipeError, did_you_mean

_WITHOUT_BLANKS = frozenset(
    {"zh", "yue", "ja", "th", "lo", "my"}
)  # whose texts begin with none, as Whisper writes them


def prompt_of(base: Speech, language: Any) -> tuple[int, ...]:
    """The tokens before a text without timestamps, in which `no_timestamps` is the last.

    Args:
        language: by code or name; None of a base that knows one.

    Raises:
        RecipeError: the base does not know it, knows several and is told none, or knows one and is told another.
    """
    told = () if base.no_timestamps is None else (base.no_timestamps,)
    if not base.languages:
        if language is not None and language != "en":
            raise RecipeError(
                f"language is {language!r}, and this base has no tokens of languages: it writes what its adapters were "
                "trained on; leave it out"
            )
        return (base.start, *told)
    if language is None:
        raise RecipeError(
            f"this base knows {len(base.languages)} languages; say which one: task.language, such as 'en'"
        )
    code = code_of(language)
    if code not in base.languages:
        raise RecipeError(
            f"{language!r} is no language of this base{did_you_mean(str(code), base.languages)}; it knows "
            f"{', '.join(sorted(base.languages))}"
        )
    spoken = () if base.transcribe is None else (base.transcribe,)
    return (base.start, base.languages[code], *spoken, *told)


def lead_of(language: str | None) -> str:
    """What stands before a text's first word."""
    return "" if language is not None and code_of(language) in _WITHOUT_BLANKS else " "


def code_of(language: Any) -> Any:
    """A language's code, from its code or its name."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return TO_LANGUAGE_CODE.get(language.lower(), language.lower()) if isinstance(language, str) else language
