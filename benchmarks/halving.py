"""How many rows early stopping saves, and how often it keeps a winner: Tune's own ASHA on drawn searches.

    python -m benchmarks.halving [--seeds N]

A drawn search has 16 trials whose final accuracies are like those of grids on tweets (`GRIDS`), moved by chance. At
each rung a trial's score is on its way there, more or less far by chance, and is a share of the rows that a rung
answers: 64, 128, 256 of 512 (2,048 are trained on). Trials are in one pack, or in two that come to a rung one after
the other. All this chance is assumed, not measured: `_WAY`, `_CHANCE`.

`order`: `any` as results come by chance, `turns` as `running.turns` has them. `saved`: of the rows that the full grid
trains on and answers with two evaluations a trial. `kept`: the share of searches whose winner is less than one
standard deviation of such a score below the full grid's. `perfect` is the most that any numbers of trials at the
three rungs keep while they save at least so much, if each rung lets exactly the best of all trials go on; the numbers
are chosen on the very searches that they are counted on.
"""

from __future__ import annotations

import argparse
import itertools
import math
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler

from benchmarks.machine import write
from ray_lora.running.turns import in_turn
from ray_lora.search.stopping import EIGHTHS, tell
from ray_lora.training.rungs import RUNGS, WHOLE, rows_at

GRIDS = {
    "random heads": (
        0.969, 0.953, 0.947, 0.941, 0.936, 0.932, 0.93, 0.914, 0.904, 0.902, 0.62, 0.916, 0.895, 0.637, 0.617, 0.58,
    ),
    "fitted heads": (
        0.959, 0.957, 0.957, 0.951, 0.951, 0.949, 0.949, 0.92, 0.92, 0.92, 0.91, 0.90, 0.86, 0.86, 0.86, 0.85,
    ),
}  # fmt: skip
TRAIN, VALIDATION, EVALUATIONS = 2048, 512, 2
FACTORS, PERFECT = (1.5, 1.7, 2.0), (0.55, 0.6, 0.65)
_BEGINS = 0.88  # what trials tend away from
_WAY = {1: 0.35, 2: 0.55, 4: 0.8, WHOLE: 1.0}  # how far a trial is on the way to its final score
_CHANCE = {1: 0.015, 2: 0.012, 4: 0.008, WHOLE: 0.0}
_SEED_SPREAD, _OWN_ROWS = 0.004, 0.8  # of final scores; of the rows' chance, which trials partly share

Search = dict[int, np.ndarray]  # eighths -> scores, [trials]


def drawn(grid: tuple[float, ...], chance: np.random.Generator) -> Search:
    """The scores of one search at all its rungs."""
    count = len(grid)
    final = chance.permutation(np.array(grid) + chance.normal(0, _SEED_SPREAD, count))
    found = {}
    for eighths in (*RUNGS, WHOLE):
        mean = _BEGINS + (final - _BEGINS) * _WAY[eighths] + chance.normal(0, _CHANCE[eighths], count)
        mean, rows = mean.clip(0.01, 0.99), rows_at(eighths, VALIDATION)
        scores = mean + chance.normal(0, 1, count) * np.sqrt(mean * (1 - mean) / rows) * _OWN_ROWS
        found[eighths] = np.round(scores * rows) / rows
    return found


def spent(came: dict[int, int], trials: int) -> float:
    """The share of the full grid's rows that so many trials at each rung cost."""
    rows, before = 0.0, 0
    for eighths in (*RUNGS, WHOLE):
        rows += came[eighths] * ((eighths - before) / WHOLE * TRAIN + rows_at(eighths, VALIDATION))
        before = eighths
    return rows / (trials * (TRAIN + EVALUATIONS * VALIDATION))


def halved(search: Search, order: str, factor: float, packs: int, chance: np.random.Generator) -> tuple[float, bool]:
    """What ASHA saves in one search, and whether it keeps a winner."""
    asha = ASHAScheduler(
        time_attr=EIGHTHS, metric="score", mode="max", max_t=WHOLE, grace_period=1, reduction_factor=factor
    )
    alive, came = list(range(len(search[WHOLE]))), {}
    for eighths in RUNGS:
        came[eighths], on = len(alive), list[int]()
        for pack in range(packs):
            scores = {str(one): float(search[eighths][one]) for one in alive if one % packs == pack}
            names = in_turn(scores, "max", factor) if order == "turns" and scores else chance.permutation(list(scores))
            told = [(str(name), {EIGHTHS: eighths, "score": scores[str(name)]}) for name in names]
            on += [int(name) for name, result in told if tell(asha, name, result) == "CONTINUE"]
        alive = on
    came[WHOLE] = len(alive)
    return 1 - spent(came, len(search[WHOLE])), keeps(search, np.array(alive))


def keeps(search: Search, alive: np.ndarray) -> bool:
    """Whether one of these is as good as the best within one standard deviation of its score."""
    best = float(search[WHOLE].max())
    return best - float(search[WHOLE][alive].max()) <= math.sqrt(best * (1 - best) / VALIDATION)


def perfect(searches: list[Search], least: float) -> dict[str, Any]:
    """The numbers of trials at the rungs that keep most winners and save at least so much."""
    trials = len(searches[0][WHOLE])
    best: dict[str, Any] = {"kept": 0.0}
    for numbers in itertools.combinations_with_replacement(range(trials, 2, -1), 3):
        came = dict(zip((*RUNGS, WHOLE), (trials, *numbers), strict=True))
        saved = 1 - spent(came, trials)
        if least <= saved < least + 0.03:
            kept = float(np.mean([keeps(search, _top(search, numbers)) for search in searches]))
            if kept > best["kept"]:
                best = {"kept": kept, "saved": saved, "go_on": numbers}
    return best


def _top(search: Search, numbers: tuple[int, ...]) -> np.ndarray:
    alive = np.arange(len(search[WHOLE]))
    for eighths, count in zip(RUNGS, numbers, strict=True):
        alive = alive[np.argsort(-search[eighths][alive], kind="stable")[:count]]
    return alive


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=200)
    seeds = options.parse_args().seeds
    found: dict[str, Any] = {"what": __doc__, "seeds": seeds}
    for name, grid in GRIDS.items():
        chance = np.random.default_rng(0)
        searches = [drawn(grid, chance) for _ in range(seeds)]
        lines = []
        for packs, order, factor in itertools.product((1, 2), ("any", "turns"), FACTORS):
            told = [halved(search, order, factor, packs, chance) for search in searches]
            saved, kept = (float(np.mean(column)) for column in zip(*told, strict=True))
            lines.append({"packs": packs, "order": order, "factor": factor, "saved": saved, "kept": kept})
            print(name, lines[-1], flush=True)
        found[name] = {"asha": lines, "perfect": [perfect(searches[:100], least) for least in PERFECT]}
        print(found[name]["perfect"], flush=True)
    print(write("halving", found))


if __name__ == "__main__":
    main()
