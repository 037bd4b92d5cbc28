"""Histories as rows have them: a list of ids, whole numbers or texts, in time order.

wrong_history([12, 7, None])      # "items [12, 7, None] hold None, which is no id; ..."
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray_lora.tasks.rows import shown

_MOST_NAMED = 5


def is_id(item: object) -> bool:
    """Whether a value may be an item's id."""
    return isinstance(item, str) or (isinstance(item, int) and not isinstance(item, bool))


def wrong_history(items: object) -> str | None:
    """What is wrong with a history; None where nothing is."""
    if not isinstance(items, list) or not items:
        return f"items {shown(items)} are no history; give a list of ids, the oldest first"
    odd = [item for item in items if not is_id(item)]
    if odd:
        return f"items {shown(items)} hold {shown(odd[0])}, which is no id; an id is a whole number or a text"
    return None


def say_unknown(unknown: Sequence[Any], known: Sequence[Any], kind: str) -> str:
    """What to say of items outside a base's vocabulary.

    Args:
        kind: what the base's ids are: "whole numbers" or "texts".
    """
    named = ", ".join(map(shown, unknown[:_MOST_NAMED]))
    more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
    one, are, them = ("item", "is", "it") if len(unknown) == 1 else ("items", "are", "them")
    other = any(type(item) is not type(known[0]) for item in unknown)
    why = f"; its ids are {kind}" if other else ""
    return (
        f"{one} {named}{more} {are} not among the {len(known):,} items of this base, such as {known[0]!r}{why}; leave "
        f"{them} out"
    )
