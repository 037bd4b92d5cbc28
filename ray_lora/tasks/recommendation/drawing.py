"""Pictures of a recommender's answers: the lists of held-out users with hits marked, and how many next items are among
the first 1, 2, … 10, beside a list of what is most popular. It knows matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_lora.recipe import Json
from ray_lora.tasks.recommendation.measures import place_of, popular
from ray_lora.tasks.recommendation.options import DEPTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_USERS = 16
_LETTERS = 12  # of an id
_HIT = "#b7e3b0"


def drawn(
    predictions: Sequence[Json], features: Sequence[Mapping[str, Any]], ids: Sequence[Any], exclude_seen: bool
) -> dict[str, Figure]:
    """`top_10` and `hit_rates`.

    Args:
        features: rows with `ids`, their histories' numbers from 1, and `next`, the number of what came after.
        ids: the vocabulary.
    """
    lists = [[one["item"] for one in answer[:DEPTH]] for answer in predictions]
    truths = [ids[row["next"] - 1] for row in features]
    return {"top_10": _lists(lists, truths), "hit_rates": _rates(lists, truths, features, ids, exclude_seen)}


def _lists(lists: Sequence[Sequence[Any]], truths: Sequence[Any]) -> Figure:
    """A row a user: half of them, where there are so many, with a hit."""
    from matplotlib.figure import Figure

    places = [place_of(list_, truth) for list_, truth in zip(lists, truths, strict=True)]
    hits = [row for row, place in enumerate(places) if place is not None]
    misses = [row for row, place in enumerate(places) if place is None]
    few = hits[: max(_USERS // 2, _USERS - len(misses))]
    rows = sorted(few + misses[: _USERS - len(few)])
    figure = Figure(figsize=(13, 1 + 0.35 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set_title(f"the first {DEPTH} of {len(rows)} held-out users, what came next marked", fontsize=10)
    text = [[_short(truths[row]), *map(_short, lists[row])] for row in rows]
    cells = [mine + [""] * (DEPTH + 1 - len(mine)) for mine in text]
    colours = [["#eeeeee", *(_HIT if place == places[row] else "white" for place in range(DEPTH))] for row in rows]
    table = axis.table(
        cells,
        colours,
        colLabels=["next", *map(str, range(1, DEPTH + 1))],
        rowLabels=[f"row {row + 1}" for row in rows],
        loc="center",
        cellLoc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.3)
    return figure


def _rates(
    lists: Sequence[Sequence[Any]],
    truths: Sequence[Any],
    features: Sequence[Mapping[str, Any]],
    ids: Sequence[Any],
    exclude_seen: bool,
) -> Figure:
    from matplotlib.figure import Figure

    histories = [row["ids"] for row in features]
    common = popular(histories, [set(mine) if exclude_seen else set() for mine in histories])
    named = [[ids[number - 1] for number in list_] for list_ in common]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, mine, style in (("adapter", lists, "o-"), ("most popular in these histories", named, "s--")):
        places = [place_of(list_, truth) for list_, truth in zip(mine, truths, strict=True)]
        counts = [sum(place is not None and place < k for place in places) for k in range(1, DEPTH + 1)]
        axis.plot(range(1, DEPTH + 1), [count / len(places) for count in counts], style, label=name)
    axis.set(xlabel="length of the list", ylabel="share of held-out rows whose next item is in it", ylim=(0, None))
    axis.legend()
    return figure


def _short(item: Any) -> str:
    text = str(item).replace("$", r"\$")
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"
