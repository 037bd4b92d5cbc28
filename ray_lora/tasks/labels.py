"""Labels: the word that a value stands for, the order of those that rows teach, and which of them a value is.

    label_word(2), label_word(True)                # "2", "True"
    learnt({"10", "2"})                            # ("2", "10")
    label_index(2, ("1", "2", "3"))                # 1: the word counts
    label_index(1, ("negative", "positive"))       # 1: an index, since no label is written as a number

It knows no tables and no tasks.
"""

from __future__ import annotations

import datetime
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from ray_lora.bounds import LONGEST_LABEL, unprintable
from ray_lora.errors import DataError, did_you_mean
from ray_lora.tasks.rows import BLANKS, shown, unreadable

_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,99}")
_MOST_NAMED = 20  # labels in one message


class Learnt(tuple[str, ...]):
    """Labels that training rows taught. Nobody chose their order, so no row's number is an index into it."""


def label_word(value: Any) -> str:
    """The name of the class that a value stands for: `str` of a word, a number, a truth value, a date or a time.

    Raises:
        DataError: it is of another kind, blank, or no finite number.
    """
    if isinstance(value, str):
        why = unreadable(value)
        if why or not value.strip(BLANKS):
            raise DataError(f"label {shown(value)} {why or 'is blank; write a word, or leave the row out'}")
        return value
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real) and math.isfinite(value):
        return str(float(value))
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)) and value == value:  # pandas' NaT is a date unlike itself
        return str(value)
    if value is None:
        raise DataError("the label is empty; fill it or leave the row out")
    raise DataError(
        f"label {shown(value)} names no class; a label is a word, a finite number, true or false, a date or a time"
    )


def unlike_a_label(word: str) -> str | None:
    """What is wrong with a word that no card would keep as a label."""
    if len(word) > LONGEST_LABEL:
        return f"has {len(word)} letters; a label has at most {LONGEST_LABEL}: is this the column of the labels?"
    return unprintable(word)


def class_word(value: Any) -> str:
    """As `label_word`, of a word that a card keeps.

    Raises:
        DataError: it is none, is too long, or holds control characters.
    """
    word = label_word(value)
    if why := unlike_a_label(word):
        raise DataError(f"label {shown(word)} {why}")
    return word


def learnt(words: Iterable[str]) -> Learnt:
    """Words in their order as labels: whole numbers by value, others by word."""
    known = set(words)
    whole = all(_WHOLE.fullmatch(word) for word in known)
    return Learnt(sorted(known, key=int) if whole else sorted(known))


def twins(labels: Iterable[str]) -> dict[str, str]:
    """The labels that a person cannot tell from another one, and which: they differ in blanks around them, in
    Unicode's normal form, or in the sign of zero."""
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for label in labels:
        other = first.setdefault(as_seen(label), label)
        if other != label:
            found[label] = other
            found.setdefault(other, label)
    return found


def as_seen(label: str) -> str:
    """What all labels have in common that a person cannot tell from this one."""
    bare = unicodedata.normalize("NFC", label.strip(BLANKS))
    return "0.0" if bare == "-0.0" else bare


def label_index(value: Any, labels: Sequence[str]) -> int:
    """The class index of a value: of its word; else, where no label is written as a number, of an index.

    Raises:
        DataError: it is neither.
    """
    word = class_word(value)
    if word in labels:
        return labels.index(word)
    indexed = not isinstance(labels, Learnt) and not any(map(_is_number, labels))
    number = -1 if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if indexed and 0 <= number < len(labels):
        return number
    named = ", ".join(map(shown, labels[:_MOST_NAMED]))
    more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
    index = f" nor an index below {len(labels)}" if indexed else ""
    raise DataError(f"label {shown(value)} is not one of {named}{more}{index}{did_you_mean(word, labels)}")


def plain_labels(count: int) -> tuple[str, ...]:
    """LABEL_0, LABEL_1, …: what transformers calls outputs that have no names."""
    return tuple(f"LABEL_{index}" for index in range(count))


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
