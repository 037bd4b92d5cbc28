"""What people say the answer to a question is, and where it stands in its context.

    answers_of({"text": ["Lima"], "answer_start": [4]}, "It: Lima")      # (Gold("Lima", 4),)
    answers_of("Lima", "It: Lima")                                       # the same: it stands there once
    answers_of({"text": [], "answer_start": []}, "It: Lima")             # (): it cannot be answered

It knows texts and characters, no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_lora.errors import DataError
from ray_lora.tasks.rows import BLANKS, is_text, say_text, shown

_SHAPE = "give {'text': [...], 'answer_start': [...]} (both empty: it cannot be answered), or the answer's text"


@dataclass(frozen=True)
class Gold:
    """One right answer: its text, and the number of its first character in the context, from 0."""

    text: str
    start: int

    @property
    def span(self) -> tuple[int, int]:
        """First character and one behind the last, without the blanks around it."""
        inner = self.text.strip(BLANKS)
        first = self.start + self.text.index(inner)
        return first, first + len(inner)


def answers_of(value: Any, context: str) -> tuple[Gold, ...]:
    """The right answers of a row; none where it cannot be answered.

    Raises:
        DataError: the value is of another shape, or an answer does not stand where it is said to.
    """
    if isinstance(value, str):
        return (_found(value, context),)
    if not isinstance(value, Mapping) or not {"text", "answer_start"} <= set(value):
        raise DataError(f"answers {shown(value)} are no answers; {_SHAPE}")
    texts, starts = value["text"], value["answer_start"]
    if not isinstance(texts, (list, tuple)) or not isinstance(starts, (list, tuple)) or len(texts) != len(starts):
        raise DataError(f"answers {shown(value)} have not one start for each text; {_SHAPE}")
    return tuple(_checked(text, start, context) for text, start in zip(texts, starts, strict=True))


def _found(text: str, context: str) -> Gold:
    """An answer of which only the text is said."""
    if not is_text(text):
        raise DataError(f"answer {say_text(text)}; {_SHAPE}")
    times = context.count(text)
    if times != 1:
        raise DataError(
            f"answer {shown(text)} stands {times} times in its context; say which with "
            "{'text': [...], 'answer_start': [...]}"
        )
    return Gold(text, context.index(text))


def _checked(text: Any, start: Any, context: str) -> Gold:
    if not is_text(text):
        raise DataError(f"answer {say_text(text)}")
    if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start <= len(context):
        raise DataError(
            f"answer {shown(text)} starts at {shown(start)}; its context has the characters 0 to {len(context) - 1}"
        )
    there = context[start : start + len(text)]
    if there != text:
        known = f"; it stands at {context.index(text)}" if text in context else ""
        raise DataError(f"answer {shown(text)} is not at {start} of its context, where {shown(there)} stands{known}")
    return Gold(text, start)
