"""What a search is for: one metric, or several, of which no trial need be best in all.

    objectives_of(recipe)                        # (Objective("f1_macro", "max"), Objective("parameters", "min"))
    front(trials, objectives)                    # those that no other trial beats in one and equals in the rest
    chosen(trials, objectives, rows)             # one of them, and why, in a sentence

Trials come best first by the first metric, each with scores on the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ray_lora.errors import RecipeError, did_you_mean
from ray_lora.inference.intervals import standard_error
from ray_lora.recipe import Recipe
from ray_lora.running.progress import describe
from ray_lora.search.summary import Trial
from ray_lora.tasks import task_of
from ray_lora.training.job import GAP, SIZES, WORST_GROUP

Mode = Literal["max", "min"]


class Objective(NamedTuple):
    """A metric, and whether more of it is better."""

    name: str
    mode: Mode

    def cost(self, trial: Trial) -> float:
        """A trial's score as a number of which less is better; infinite where it has none."""
        score = trial.metrics.get(self.name, math.nan)
        return (-score if self.mode == "max" else score) if math.isfinite(score) else math.inf


def objectives_of(recipe: Recipe, metric: str | None = None, mode: Mode | None = None) -> tuple[Objective, ...]:
    """The metrics that decide, the first one first.

    Args:
        metric, mode: of a TuneConfig, in place of the recipe's.

    Raises:
        RecipeError: nobody reports such a metric, or groups are asked for by two of them.
    """
    search, task, metrics = recipe.search, task_of(recipe.task), metrics_of(recipe)
    if metric is None and search.metrics:
        asked: list[tuple[str, Mode | None]] = [(each.name, each.mode) for each in search.metrics]
    else:
        asked = [(metric or search.metric or task.metric, mode or search.mode)]
    for name, _ in asked:
        if name not in metrics:
            raise RecipeError(
                f"unknown metric {name!r}; {recipe.task.type} reports {', '.join(metrics)}"
                f"{did_you_mean(name, metrics)}{_why_not(name)}"
            )
    if len(parted := _grouped([name for name, _ in asked])) > 1:
        raise RecipeError(f"groups are compared by one metric, and these are of {', '.join(parted)}; leave one out")
    return tuple(Objective(name, told or metrics[name]) for name, told in asked)


def metrics_of(recipe: Recipe) -> dict[str, Mode]:
    """Every metric that a search of this recipe can be for, and which way it is better."""
    metrics: dict[str, Mode] = dict(task_of(recipe.task).metrics)
    told: dict[str, Mode] = metrics | {"loss": "min"}
    told |= dict.fromkeys(SIZES, "min")
    if recipe.search.groups is not None:
        for name, mode in metrics.items():
            told |= {name + WORST_GROUP: mode, name + GAP: "min"}
    return told


def _why_not(name: str) -> str:
    if name.endswith((WORST_GROUP, GAP)):
        return "; name the column of the groups in search.groups"
    if "latency" in name:
        return "; adapters of one base differ in latency by less than a measurement does: give parameters"
    return ""


def fair_of(objectives: Sequence[Objective], own: str) -> str:
    """The metric whose groups are compared: that of an objective of groups, else the first that is a score of rows.

    Args:
        own: the task's, where none is.
    """
    names = [each.name for each in objectives]
    scores = [name for name in names if name not in (*SIZES, "loss")]
    return [*_grouped(names), *scores, own][0]


def _grouped(names: Sequence[str]) -> list[str]:
    """The metrics of which these names are the worst group's or the gap, each once."""
    parted = [name.removesuffix(WORST_GROUP).removesuffix(GAP) for name in names if name.endswith((WORST_GROUP, GAP))]
    return list(dict.fromkeys(parted))


def front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The Pareto set: trials that no other one beats in one metric without being worse in another."""
    costs = {trial.name: [each.cost(trial) for each in objectives] for trial in trials}

    def beaten(trial: Trial) -> bool:
        mine = costs[trial.name]
        return any(
            theirs != mine and all(their <= my for their, my in zip(theirs, mine, strict=True))
            for theirs in costs.values()
        )

    return [trial for trial in trials if not beaten(trial)]


def chosen(trials: Sequence[Trial], objectives: Sequence[Objective], rows: int) -> tuple[Trial, str]:
    """The trial to serve: of those whose first metric lies within one standard error of the best, the one that is best
    in the second, of equals in the third, and so on; and the sentence that says so.

    Args:
        rows: validation rows. A first metric that is to be small is no share of rows and has no standard error here.
    """
    first, *others = objectives
    best = min(trials, key=first.cost)
    slack = standard_error(best.metrics[first.name], rows) if first.mode == "max" and first.name not in SIZES else 0.0
    close = [trial for trial in trials if first.cost(trial) <= first.cost(best) + slack]
    taken = min(close, key=lambda trial: [each.cost(trial) for each in (*others, first)])
    scores = ", ".join(f"{each.name} {_said(taken.metrics[each.name])}" for each in objectives)
    names = " and then ".join(f"{'most' if each.mode == 'max' else 'least'} {each.name}" for each in others)
    within = f"within one standard error ({slack:.4f}) of" if slack else "equal to"
    rule = f"of {len(close)} whose {first.name} is {within} the best, {best.metrics[first.name]:.4g}, the {names}"
    return taken, f"{describe(taken.config)}: {scores}; {rule}"


def _said(score: float) -> str:
    return f"{score:,.0f}" if score == round(score) and abs(score) > 1 else f"{score:.4f}"
