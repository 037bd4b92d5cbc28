"""In which order a scheduler hears of trials that were evaluated at the same time.

    in_turn({"a": 0.7, "b": 0.9, "c": 0.6, "d": 0.8}, "max", 2)      # ["d", "a", "b", "c"]

ASHA lets go on whoever lies above the quantile of those that it has heard of: so the first always does, and who comes
after the best hardly does. From the cut outwards, those above and those below taking turns, that quantile is the same
at every decision as it is of all of them, and exactly the better share goes on. The decisions are the scheduler's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ray_lora.training.job import Report
from ray_lora.training.rungs import WHOLE

_HEARD_S = 10.0  # how long an evaluation waits for the one that is to be heard of before it


@dataclass(frozen=True)
class Turns:
    """By which score trials take turns; of `factor` of them one is to go on."""

    metric: str
    mode: Literal["max", "min"]
    factor: float


def in_turn(scores: Mapping[str, float], mode: str, factor: float) -> list[str]:
    """The names in the order in which they are to be heard of; one without a finite score counts as the worst.

    Args:
        factor: of so many one goes on, above 1: the better `1 / factor` of them, rounded up.
    """
    sign = -1 if mode == "max" else 1
    costs = {name: sign * score if math.isfinite(score) else math.inf for name, score in scores.items()}
    ranked = sorted(costs, key=lambda name: costs[name])  # best first
    kept = math.ceil(len(ranked) / factor)
    above, below = ranked[:kept][::-1], ranked[kept:]
    order, told = [], 0
    for number, name in enumerate(above, 1):
        until = round(number * len(below) / kept)
        order += [name, *below[told:until]]
        told = until
    return order


class Queue:
    """Whose evaluation waits for whose. Where nobody says `heard` for a while, nobody is listening, and nobody waits.

    Attributes:
        moved: when a scheduler last decided, or first had something to decide on; 0.0 before.
    """

    def __init__(self, turns: Turns | None) -> None:
        self.turns, self.moved = turns, 0.0
        self._before: dict[str, str] = {}  # of who waits, who is to be heard of first
        self._unheard: set[str] = set()

    def put(self, reports: Sequence[Report]) -> None:
        """The reports of one step: those of rungs are put in turn."""
        if self.turns is None:
            return
        metrics = {
            report.job: report.logged
            for report in reports
            if report.eighths is not None and report.eighths < WHOLE and report.error is None
        }
        scores = {name: told.get(self.turns.metric, math.nan) for name, told in metrics.items()}
        if scores:
            order, self.moved = in_turn(scores, self.turns.mode, self.turns.factor), time.monotonic()
            self._unheard |= set(order)
            self._before |= {name: before for before, name in pairwise(order)}

    def heard(self, name: str) -> None:
        """A scheduler has decided on this one's evaluation."""
        self._unheard.discard(name)
        self.moved = time.monotonic()

    def may(self, name: str, runs: Callable[[str], bool]) -> bool:
        """Whether this one's evaluation may be told.

        Args:
            runs: whether a trial is still there; of one that has gone nobody will hear.
        """
        before = self._before.get(name)
        return self.turns is None or before is None or before not in self._unheard or not runs(before)

    def told(self, name: str) -> None:
        """This one's evaluation was told."""
        self._before.pop(name, None)

    def patience(self, coming: bool) -> float:
        """Seconds for which it is worth waiting for the next decision; with none left, turns are over for good.

        Args:
            coming: whether trials are still to come that listen.
        """
        if coming:
            self.moved = time.monotonic()
        left = self.moved + _HEARD_S - time.monotonic()
        if left <= 0:
            self.turns = None
        return max(0.0, left)
