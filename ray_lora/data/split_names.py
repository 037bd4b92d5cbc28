"""What splits are called. Knows words, no files."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORDS = {  # as `datasets` finds them
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_MOST_NAMED = 10


def canonical_split(name: str) -> str:
    """One name for all that a split is called: "dev" and "val" are "validation"; other names are their own."""
    return _WORDS.get(name.lower(), name)


def splits_in(name: str) -> set[str]:
    """The splits that the words of a name tell: "tweets_train.2" tells "train"."""
    return {_WORDS[word] for word in re.split(r"[-._ /0-9]+", name.lower()) if word in _WORDS}


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    named = sorted({name for name in names if name})
    return ", ".join(named[:_MOST_NAMED]) + (", ..." if len(named) > _MOST_NAMED else "")
