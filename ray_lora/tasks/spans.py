"""Labels of words as spans: what an entity is, and which labels stand for none. Knows labels, no tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json

OUTSIDE = "O"
_OTHERS = ("E-", "S-", "L-", "U-", "M-")
STRATEGIES = ("none", "simple", "first", "average", "max")  # of transformers' token-classification pipeline


def entities(tags: Sequence[str], strict: bool = True) -> set[tuple[str, int, int]]:
    """(type, first word, one behind the last) of the entities in labels of words.

    By IOB2: an I-x that does not continue an x is none where it is `strict`; else it begins one. A label that is
    neither B-x, I-x nor "O" is an entity of one word.
    """
    found: list[tuple[str, int, int]] = []
    open_: str | None = None
    for at, tag in enumerate(tags):
        kind, dash, name = tag.partition("-")
        if dash and kind == "I":
            if open_ == name:
                found[-1] = (name, found[-1][1], at + 1)
            elif not strict:
                open_ = name
                found.append((name, at, at + 1))
            else:
                open_ = None
            continue
        open_ = name if dash and kind == "B" else None
        if tag != OUTSIDE:
            found.append((open_ or tag, at, at + 1))
    return set(found)


def is_iob2(tags: Sequence[str]) -> bool:
    """Whether each I-x of some words continues an x."""
    return all(
        one[2:] == other[2:] and one[:2] in ("B-", "I-")
        for one, other in pairwise([OUTSIDE, *tags])
        if other.startswith("I-")
    )


def other_scheme(labels: Sequence[str]) -> str | None:
    """The first label that says of an entity's word that it is the last, the only or a middle one, as IOBES, BILOU and
    BMES do; None: there is none."""
    known = {label[2:] for label in labels if label.startswith(("B-", "I-"))}
    return next((label for label in labels if label[:2] in _OTHERS and label[2:] in known), None)


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
