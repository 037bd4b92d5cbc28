"""What a request may ask of a recommender.

options_of({"top_k": 5}, exclude_seen=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json

DEPTH = 10  # of the lists that are scored
FULL: Mapping[str, Json] = {"top_k": None}  # what was seen is left out or not as the adapter's options say


@dataclass(frozen=True)
class Options:
    """Which items are answered.

    Attributes:
        top_k: at most so many; None: all.
        exclude_seen: whether items of the history are left out.
    """

    top_k: int | None
    exclude_seen: bool


def options_of(parameters: Mapping[str, Json], exclude_seen: bool) -> Options:
    """RecipeError for a parameter that is not known, or is out of range.

    Args:
        exclude_seen: what holds where the request does not say.
    """
    known = Options.__dataclass_fields__
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise RecipeError(f"parameters {unknown} are not known to this task; it takes {', '.join(known)}")
    options = Options(parameters.get("top_k", DEPTH), parameters.get("exclude_seen", exclude_seen))
    count = options.top_k
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise RecipeError(f"top_k {count!r} must be a whole number of at least 1, or null for all")
    if not isinstance(options.exclude_seen, bool):
        raise RecipeError(f"exclude_seen {options.exclude_seen!r} must be true or false")
    return options
