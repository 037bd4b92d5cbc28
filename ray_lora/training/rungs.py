"""Where a search's trial is evaluated before its end, and on how many of the validation rows: early, on few.

    rungs_of(128)            # {16: 1, 32: 2, 64: 4}: after 16 of 128 steps the first eighth is done
    rows_at(1, 512)          # 64
    part_of(512, 64)         # the numbers of those rows, the same for every trial

It knows steps and row numbers, no rows and no scores.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

RUNGS = (1, 2, 4)  # eighths of a trial's steps: each rung costs as much as all before it
WHOLE = 8
LEAST_ROWS = 64  # on fewer the 95 % interval of a share is wider than ±0.12, and stopping by it is a lottery
_SEED = 0


def rungs_of(total: int) -> dict[int, int]:
    """The steps after which a trial of `total` steps is evaluated before its end, and how many eighths each stands for.

    Where steps are so few that two rungs fall on one, it stands for the later one.
    """
    steps = {math.ceil(total * eighths / WHOLE): eighths for eighths in RUNGS}
    return {step: eighths for step, eighths in steps.items() if step < total}


def rows_at(eighths: int, total: int) -> int:
    """How many of `total` validation rows are answered at a rung: the same eighths, but at least `LEAST_ROWS`."""
    return min(total, max(LEAST_ROWS, math.ceil(total * eighths / WHOLE)))


@lru_cache(maxsize=8)
def part_of(total: int, count: int) -> frozenset[int]:
    """The numbers of `count` of `total` rows, drawn once and for all: a smaller part lies within a larger one."""
    drawn = np.random.default_rng(_SEED).permutation(total)
    return frozenset(drawn[:count].tolist())
