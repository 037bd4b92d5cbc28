"""Hit rate and NDCG of lists over the full ranking, and lists of what is most popular. Knows numbers of items.

measures([[4, 7, 1]], [7])      # {"hit_rate_10": 1.0, "ndcg_10": 0.63}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence

from ray_lora.tasks.recommendation.options import DEPTH


def place_of(list_: Sequence[Hashable], truth: Hashable) -> int | None:
    """Where the truth stands among the first ten, from 0; None where it does not."""
    first = list(list_[:DEPTH])
    return first.index(truth) if truth in first else None


def measures(lists: Sequence[Sequence[Hashable]], truths: Sequence[Hashable]) -> dict[str, float]:
    """Means over rows: the share whose next item is among the first ten, and its discount, 1 / log2(place + 1) (with
    one right item a row the ideal is 1; Järvelin and Kekäläinen 2002)."""
    places = [place_of(list_, truth) for list_, truth in zip(lists, truths, strict=True)]
    found = [place for place in places if place is not None]
    return {
        "hit_rate_10": len(found) / len(places),
        "ndcg_10": sum(1 / math.log2(place + 2) for place in found) / len(places),
    }


def popular(histories: Sequence[Sequence[int]], seen: Sequence[Collection[int]]) -> list[list[int]]:
    """For each row the most frequent items of all histories, without those that it has seen: at most ten.

    Args:
        histories: what is counted. seen: of each row to be answered, what is left out of its list.
    """
    counts = Counter(item for history in histories for item in history)
    order = sorted(counts, key=lambda item: (-counts[item], item))
    return [[item for item in order[: DEPTH + len(mine)] if item not in mine][:DEPTH] for mine in seen]
