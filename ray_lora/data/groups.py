"""Whose group each validation row is of, for a search that is to serve groups alike.

    groups_of(recipe)          # ("north", "south", "north", ...), in the rows' order

It knows a column, not what rows mean.
"""

from __future__ import annotations

import numpy as np

from ray_lora.data.people import words_of
from ray_lora.data.rows import read_rows
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec, Recipe
from ray_lora.tasks import Column

LEAST = 16  # rows of a group: a score on fewer says more of these rows than of the adapter
_ROLE = "search.groups"


def groups_of(recipe: Recipe) -> tuple[str, ...]:
    """The group of each validation row, as a word.

    Raises:
        DataError: the column is missing or has empty values, there are fewer than two groups, or one has too few rows.
    """
    name, given = recipe.search.groups, recipe.data.validation
    assert name is not None
    assert given is not None
    told = DataSpec(columns={_ROLE: name}, images=recipe.data.images)
    rows = read_rows(given, told, {_ROLE: Column(("label",), about=_ROLE)}, "validation")
    words, whose = words_of(rows, _ROLE, name)
    counts = np.bincount(whose, minlength=len(words))
    small = [f"{word!r} ({count})" for word, count in zip(words, counts.tolist(), strict=True) if count < LEAST]
    if len(words) < 2 or small:
        why = f"too few of {', '.join(small[:3])}" if small else f"all of {words[0]!r}"
        raise DataError(
            f"{rows.given}: search.groups compares groups of at least {LEAST} rows each, and column {name!r} has "
            f"{why}; put small groups together, or name another column"
        )
    return tuple(words[number] for number in whose.tolist())
