"""What is wrong with a search itself, in a sentence each: fewer trials in a pack than there is room for, a searched key
that reaches nothing. It stops nothing.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence

from ray_lora.recipe import Recipe
from ray_lora.running.plan import Plan
from ray_lora.search.summary import Trial
from ray_lora.training.job import SIZES

_SAME = 1e-6  # of a loss: what rows that share a pass with others may move it by
_OWN = {"learning_rate", "epoch", "step", "total_steps", "eighths", "validation_rows", *SIZES}  # say what was asked for


def few_members(recipe: Recipe, plan: Plan, packs: int, trials: int, at_once: int) -> list[str]:
    """Why packs will hold fewer trials than were asked for, or than fill a pass.

    Args:
        plan: with the slots that each pack has; packs: how many.
        at_once: trials that run at the same time, at most.
    """
    alarms = []
    asked, filling = recipe.scaling.slots, -(-plan.max_rows // recipe.training.per_device_train_batch_size)
    if asked is not None and trials < asked * packs:
        alarms.append(
            f"scaling.slots asks for {asked} adapters in each of {packs} packs, and the search has {trials} trials; "
            "lower scaling.slots or scaling.packs"
        )
    if at_once < min(trials, plan.slots * packs):
        alarms.append(
            f"search.max_concurrent_trials lets {at_once} trials train at once, {packs} packs have {plan.slots} slots "
            "each; raise it, or the rest of each pass stays empty"
        )
    if asked is None and plan.room < min(filling, -(-trials // packs)):
        alarms.append(
            f"memory has room for {plan.room} adapters in a pack where {filling} would fill a pass; lower the largest "
            "lora.r, or choose a smaller base"
        )
    return alarms


def unreached(scored: Sequence[Trial]) -> list[str]:
    """Searched keys that change nothing: trials that differ in one of them alone have the same losses and scores."""
    alarms = []
    for key in sorted({key for trial in scored for key in trial.config}):
        alike: dict[str, list[Trial]] = defaultdict(list)
        for trial in scored:
            others = {name: value for name, value in trial.config.items() if name != key}
            alike[json.dumps([others, trial.metrics.get("step")], sort_keys=True, default=str)].append(trial)
        groups = [group for group in alike.values() if len({str(trial.config[key]) for trial in group}) > 1]
        if groups and all(_same(group[0], other) for group in groups for other in group[1:]):
            values = ", ".join(sorted({str(trial.config[key]) for group in groups for trial in group}))
            alarms.append(
                f"{key} reaches nothing: trials that differ in it alone ({values}) have the same losses and scores; "
                "leave it out of the space, or see what switches it off"
            )
    return alarms


def _same(one: Trial, other: Trial) -> bool:
    mine = {name: value for name, value in one.metrics.items() if name not in _OWN}
    theirs = {name: value for name, value in other.metrics.items() if name not in _OWN}
    return mine.keys() == theirs.keys() and all(
        math.isclose(value, theirs[name], rel_tol=_SAME, abs_tol=_SAME) for name, value in mine.items()
    )
