"""Every error a user can cause. Each is also a standard-library error, carries one message, and pickles.

RayLoraError
├── RecipeError(ValueError)        a recipe, an option or an argument is wrong
├── DataError(ValueError)          a file, a column, a label or a row is wrong
├── BaseModelError(ValueError)     a base cannot be loaded, or is not the one an adapter was trained on
├── AdapterError(ValueError)       an adapter folder cannot be used as it is
├── AdapterNotFoundError(LookupError)  a ref names nothing in the store
└── CapacityError(RuntimeError)    no free slot, or more than fits in memory

A message says what was given, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 4000  # letters of a message: some twenty lines


class RayLoraError(Exception):
    """Base of all errors that a user of ray_lora can cause. A message that is longer than a page is cut."""

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(message if len(message) <= _LONGEST else f"{message[: _LONGEST - 1]}…", *more)


class RecipeError(RayLoraError, ValueError):
    """A recipe, an option or an argument is wrong."""


class DataError(RayLoraError, ValueError):
    """A file, a column, a label or a row is wrong."""


class BaseModelError(RayLoraError, ValueError):
    """A base cannot be loaded, or is not the one an adapter was trained on."""


class AdapterError(RayLoraError, ValueError):
    """An adapter folder cannot be used as it is."""


class AdapterNotFoundError(RayLoraError, LookupError):
    """A ref names nothing in the store."""


class CapacityError(RayLoraError, RuntimeError):
    """No free slot, or more than fits in memory."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest allowed word, or an empty string."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
