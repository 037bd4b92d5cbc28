"""How far a score could lie from what it would be on other rows of the same kind.

    scored = intervals(task, predictions, features)
    scored["accuracy"]       # Scored(value=0.91, low=0.88, high=0.94, draws=[...])

It knows predictions and rows, no adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_lora.recipe import Json
from ray_lora.tasks import Features, Task

_DRAWS, _LEAST_DRAWS = 200, 40
_ROWS = 4_000_000  # scored in all draws together, unless those are fewer than `_LEAST_DRAWS` then
_SEED = 0
_SURE = 1.96  # standard errors on each side of 95 % of what chance does


@dataclass(frozen=True)
class Scored:
    """A score and its 95 % interval.

    Attributes:
        draws: the score in each draw of rows, for comparing with another's in the same draws.
    """

    value: float
    low: float
    high: float
    draws: Sequence[float]


def intervals(task: Task, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, Scored]:
    """Every metric of the task, with the interval of the percentile bootstrap over rows (Efron and Tibshirani, 1993).

    The draws are the same for all predictions of so many rows, so that two of them can be compared draw by draw.
    """
    value, count = task.score(predictions, features), len(features)
    drawn = np.random.default_rng(_SEED)
    draws: dict[str, list[float]] = {name: [] for name in value}
    for _ in range(max(_LEAST_DRAWS, min(_DRAWS, _ROWS // max(1, count)))):
        rows = drawn.integers(0, count, count).tolist()
        scores = task.score([predictions[row] for row in rows], [features[row] for row in rows])
        for name, score in scores.items():
            draws[name].append(score)
    found = {}
    for name, mine in draws.items():
        low, high = np.nanpercentile(mine, [2.5, 97.5]).tolist()
        found[name] = Scored(value[name], low, high, mine)
    return found


def as_good(other: Scored, best: Scored, mode: str) -> bool:
    """Whether another score is not told apart from the best one: better or equal in more than 2.5 % of the draws."""
    sign = 1 if mode == "max" else -1
    better = [sign * mine >= sign * theirs for mine, theirs in zip(other.draws, best.draws, strict=True)]
    return sum(better) > 0.025 * len(better)


def standard_error(score: float, rows: int) -> float:
    """What a share of `rows` can move by chance, 0 for what is no share: the binomial standard error; of 0 and 1, where
    that one is 0 as if nothing could have come otherwise, the one after two hits and two misses more (Agresti and
    Coull, 1998).
    """
    if not 0 <= score <= 1:
        return 0.0
    if score in (0, 1):
        score, rows = (score * rows + 2) / (rows + 4), rows + 4
    return math.sqrt(score * (1 - score) / max(1, rows))


def scored_on(score: float, rows: int, mode: str) -> str:
    """A score with the half of its 95 % interval, `0.9500 ±0.021`; without it where it is no share of the rows."""
    error = standard_error(score, rows) if mode == "max" else 0.0
    return f"{score:.4f} ±{_SURE * error:.3f}" if error else f"{score:.4f}"
