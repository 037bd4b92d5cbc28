"""Labels of words as spans: what an entity is, and which labels stand for none. Knows labels, no tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json

OUTSIDE = "O"
STRATEGIES = ("none", "simple", "first", "average", "max")  # of transformers' token-classification pipeline


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first word, one behind the last) of the entities in labels of words.

    Strictly by IOB2: an I-x that does not continue an x is none. A label that is neither B-x, I-x nor "O" is an entity
    of one word.
    """
    found: list[tuple[str, int, int]] = []
    open_: str | None = None
    for at, tag in enumerate(tags):
        kind, dash, name = tag.partition("-")
        if dash and kind == "I":
            if open_ == name:
                found[-1] = (name, found[-1][1], at + 1)
            else:
                open_ = None
            continue
        open_ = name if dash and kind == "B" else None
        if tag != OUTSIDE:
            found.append((open_ or tag, at, at + 1))
    return set(found)


def options_of(parameters: Mapping[str, Json]) -> tuple[str, tuple[str, ...]]:
    """`aggregation_strategy` and `ignore_labels`, as in the Hugging Face pipeline.

    Raises:
        RecipeError: another parameter is given, or a value that is not allowed.
    """
    unknown = sorted(set(parameters) - {"aggregation_strategy", "ignore_labels"})
    if unknown:
        raise RecipeError(
            f"parameters {unknown} are not known to this task; it takes aggregation_strategy and ignore_labels"
        )
    strategy = parameters.get("aggregation_strategy")
    strategy = "none" if strategy is None else strategy
    if strategy not in STRATEGIES:
        raise RecipeError(f"aggregation_strategy {strategy!r} must be one of {', '.join(STRATEGIES)}")
    ignored = parameters.get("ignore_labels")
    ignored = [OUTSIDE] if ignored is None else ignored
    if not isinstance(ignored, list) or not all(isinstance(label, str) for label in ignored):
        raise RecipeError(f"ignore_labels {ignored!r} must be a list of labels")
    return strategy, tuple(ignored)
