"""How a search ends early: whether its trials are evaluated at rungs, and which of Ray Tune's schedulers stops them.

    how = stopping_of(recipe, space, given=None, trials=12, steps=128, rows=512)
    how.rungs, how.scheduler     # True, Tune's ASHA over eighths of a trial's steps

It decides nothing about a trial: Tune's scheduler does. It also keeps what ASHA was told, because Tune's own checkpoint
of a search leaves schedulers out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune import TuneConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from ray_lora.errors import RecipeError
from ray_lora.recipe import Recipe
from ray_lora.training.rungs import LEAST_ROWS, WHOLE

LEAST_TRIALS = 8  # of fewer, halving keeps too few to be sure of the best
LEAST_STEPS = 2 * WHOLE  # so that a rung is more than a step from the one before
_RESIDENT = 4  # times as many trials as fill a pass are in a pack that most of them leave at the first rungs
_EPOCHS = 10_000  # more evaluations than any trial has
FACTOR = 1.7  # of so many trials one goes on at each rung
EIGHTHS = "eighths"  # what a scheduler's time_attr reads: 1, 2, 4 and 8 of a trial's own steps


@dataclass(frozen=True)
class Stopping:
    """Whether trials are evaluated at rungs; who stops them, None for nobody; and one sentence about it."""

    rungs: bool
    scheduler: TrialScheduler | None
    said: str


def check_stopping(recipe: Recipe, searched: Collection[str]) -> None:
    """Raise RecipeError where rungs are asked for and evaluations are set by `training.eval_steps` too."""
    if recipe.search.early_stopping == "rungs" and _spaced(recipe, searched):
        raise RecipeError(
            "search.early_stopping: rungs evaluates after 1/8, 1/4 and 1/2 of a trial's steps and at its end; leave "
            "training.eval_steps out, or set search.early_stopping: none"
        )


def stopping_of(
    recipe: Recipe, searched: Collection[str], given: TuneConfig | None, trials: int, steps: int, rows: int
) -> Stopping:
    """How this search ends early.

    Args:
        searched: the keys of its space.
        given: Ray's own TuneConfig, where somebody gave one: its scheduler is the one that is used.
        trials: how many there will be; steps: of one; rows: of validation.
    """
    search = recipe.search
    scheduler = "given" if given is not None else search.scheduler
    why = None
    if search.early_stopping == "none":
        why = "search.early_stopping is none"
    elif search.early_stopping == "auto":
        why = _senseless(recipe, searched, scheduler, trials, steps, rows)
    rungs = why is None
    if given is not None:
        return Stopping(rungs, given.scheduler, "the TuneConfig's scheduler decides")
    if scheduler == "median":
        return Stopping(rungs, _median(rungs), f"Ray Tune's median rule stops trials{_at(rungs)}")
    if scheduler == "asha" or (scheduler == "auto" and rungs):
        return Stopping(rungs, _asha(rungs), f"Ray Tune's ASHA stops trials{_at(rungs)}")
    return Stopping(rungs, None, f"every trial goes to its end{f': {why}' if why else ''}")


def resident(slots: int, room: int, rungs: bool) -> int:
    """Slots of a pack whose trials end early: all come to the first rung before any goes on.

    Args:
        slots: as many as fill a pass; room: as fit in memory.
    """
    return min(room, _RESIDENT * slots) if rungs else slots


def _senseless(
    recipe: Recipe, searched: Collection[str], scheduler: str, trials: int, steps: int, rows: int
) -> str | None:
    """Why `auto` leaves evaluations where they are; None where it does not."""
    if _spaced(recipe, searched):
        return "training.eval_steps says when trials are evaluated"
    if len(recipe.search.metrics) > 1 and scheduler == "auto":
        return "several metrics decide, and the first one would end what is best in the others"
    if scheduler in ("given", "fifo"):
        return "nobody asked for a scheduler that stops"
    if rows < LEAST_ROWS:
        return f"{rows} validation rows are too few to stop by a part of them"
    if steps < LEAST_STEPS:
        return f"{steps} steps are too few to be cut in eighths"
    if scheduler == "auto" and trials < LEAST_TRIALS:
        return f"{trials} trials are too few to stop some of them"
    return None


def _spaced(recipe: Recipe, searched: Collection[str]) -> bool:
    return recipe.training.eval_steps is not None or "training.eval_steps" in searched


def _at(rungs: bool) -> str:
    return " after 1/8, 1/4 and 1/2 of their steps" if rungs else " at their evaluations"


def _asha(rungs: bool) -> ASHAScheduler:
    if rungs:
        return ASHAScheduler(time_attr=EIGHTHS, max_t=WHOLE, grace_period=1, reduction_factor=FACTOR)
    return ASHAScheduler(time_attr="training_iteration", max_t=_EPOCHS, grace_period=1)


def _median(rungs: bool) -> MedianStoppingRule:
    return MedianStoppingRule(time_attr=EIGHTHS if rungs else "training_iteration", grace_period=1)


_LISTENING: dict[str, Any] = {}  # the coordinators of the searches of this process, by their folders


@contextlib.contextmanager
def listening(folder: str, coordinator: Any) -> Iterator[None]:
    """While Tune runs a search, its coordinator learns of each of Tune's decisions from that search's `Heard`."""
    _LISTENING[folder] = coordinator
    try:
        yield
    finally:
        del _LISTENING[folder]


class Heard(tune.Callback):
    """Tells a search's coordinator that Tune has decided on an evaluation, so that the next one of its rung is told.

    Tune keeps callbacks in its checkpoint of a search, beyond the life of a coordinator: so it has the folder's name.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if self._folder in _LISTENING:  # Tune calls this when its scheduler has decided
            _LISTENING[self._folder].heard.remote(trial.trial_id)


class Remembered(tune.Callback):
    """What ASHA was told, kept with Tune's own checkpoint of the search and told once more to the ASHA of a search that
    goes on after a kill: so it compares with all trials that came to a rung, also with those that have ended."""

    def __init__(self, scheduler: ASHAScheduler) -> None:
        self._scheduler = scheduler
        self._told: list[tuple[str, dict[str, float]]] = []

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        numbers = {key: value for key, value in result.items() if isinstance(value, (int, float))}
        self._told.append((trial.trial_id, numbers))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._told = [told for told in self._told if told[0] != trial.trial_id]  # it begins anew, under another name

    def get_state(self) -> dict[str, Any]:
        return {"told": list(self._told)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._told = list(state["told"])
        for name, result in self._told:
            tell(self._scheduler, name, result)


@dataclass(frozen=True)
class _Named:
    """All that ASHA reads of a trial."""

    trial_id: str


def tell(scheduler: ASHAScheduler, name: str, result: dict[str, float]) -> str:
    """Tune's own decision on one result of a trial."""
    trial: Any = _Named(name)
    if name not in scheduler._trial_info:  # a second time, it would draw the trial's bracket anew
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]  # ASHA asks nothing of the controller
    return scheduler.on_trial_result(None, trial, dict(result))  # type: ignore[arg-type]
