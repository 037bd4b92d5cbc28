"""How long a recipe's training or search will take on this machine, and how much memory, from what probes measured.

    told = foresee(recipe, plan, run, probed)       # plan: of `running.plan.plan_recipe`; run: `run_of(recipe, plan)`
    told["seconds"]                                 # [40.1, 93.0]: if ASHA halves as usual, and if nobody is stopped

Measured are the imports of a worker, loading, encoding, heads, steps of several numbers of members, and the evaluation;
the rest is arithmetic over steps and rows. Ray's own start-up is told in imports (`_START`, `_TRIAL`): nearly all of it
is processes that import.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler

from ray_lora.bounds import size_words
from ray_lora.recipe import Json, Recipe, TaskSpec, TrainingSpec
from ray_lora.running.plan import plan_with_task, slots_for, targets_embeddings
from ray_lora.running.plan import show as show_plan
from ray_lora.running.probes import Asked, Probed, ProbeError, Probes, packs_of
from ray_lora.running.time_left import Kind, keep_foreseen, said_time
from ray_lora.search.space import adds_default, check_search, count_trials, grid_of, sampled
from ray_lora.search.stopping import resident, stopping_of
from ray_lora.training.head_start import MOST_ROWS
from ray_lora.training.member import steps_of
from ray_lora.training.rungs import RUNGS, WHOLE, rows_at

_START = 2.5  # imports one after the other on a running Ray, before a first step
_TRIAL = 0.36  # of an import's processor time that a trial's process takes to start, all of them before a first step
_MEMBERS = 8  # of a probe's largest step, or as many as fill two passes
_KEPT = 40  # passes of other sizes until oneDNN keeps as much for them as it ever will
_ALONE = 0.85  # of a processor: who has less shares it
_CONFIGS = 256  # of a search's trials whose steps are counted; more are taken to be like them


@dataclass(frozen=True)
class Stage:
    """A part of every trial's steps: its share of them, the share of trials that take it where ASHA stops as usual, and
    the validation rows that are answered at its end."""

    steps: float
    alive: float
    answered: int


@dataclass(frozen=True)
class Run:
    """What will run.

    Attributes:
        kind: "training" or "search".
        configs: recipe keys of the trials, or of some of many; trials: how many there are.
        packs, slots: packs of this machine, and adapters that train together in each.
        ending: how trials are stopped, in a sentence.
    """

    kind: Kind
    configs: tuple[dict[str, Json], ...]
    trials: int
    packs: int
    slots: int
    stages: tuple[Stage, ...]
    ending: str = ""


def plan_and_foresee(recipe: Recipe, probes: Probes | None) -> dict[str, Json]:
    """The plan of `running.plan`, and under `foreseen` what probes found, which is kept for the run that may follow; a
    probe that fails leaves the plan as it is and says why under `unforeseen`.

    Raises:
        RayLoraError: something is wrong with the recipe, its rows or its search.
    """
    check_search(recipe)
    plan, task = plan_with_task(recipe)
    if recipe.scaling.use_gpu:
        return plan | {"unforeseen": "times of a GPU are not probed"}
    if probes is None:
        return plan
    run = run_of(recipe, plan)
    try:
        probed = probes.ask(asked_of(recipe, plan, task, run), run.packs * recipe.scaling.num_workers)
    except ProbeError as error:
        return plan | {"unforeseen": f"a probe failed: {error}"}
    told = foresee(recipe, plan, run, probed)
    low, high = told["seconds"]
    keep_foreseen(recipe, run.kind, plan["rows"], (low, high))
    return plan | {"foreseen": told}


def show(plan: Mapping[str, Json]) -> str:
    """A plan, and what was foreseen, for reading."""
    lines = [show_plan(plan)]
    if "foreseen" in plan:
        lines.append(_shown(plan["foreseen"]))
    if "unforeseen" in plan:
        lines.append(f"{'time':<9} {plan['unforeseen']}")
    return "\n".join(lines)


def run_of(recipe: Recipe, plan: Mapping[str, Json]) -> Run:
    """What `ray-lora search` will run where the recipe has a space, else `ray-lora train`."""
    rows, training = plan["rows"], recipe.training
    steps, per_epoch = plan["steps"], _per_epoch(recipe, training, plan)
    answered = rows.get("validation", 0)
    whole = _epochs(training.eval_steps or per_epoch, steps, answered)
    if recipe.search.space is None:
        return Run("training", ({},), 1, 1, 1, whole)
    space = sampled(recipe)
    trials = count_trials(space, recipe.search.num_samples, int(adds_default(recipe, space)))
    how = stopping_of(recipe, space, None, trials, steps, answered)
    packs = min(trials, packs_of(recipe))
    slots = resident(plan["slots"], plan["room"], how.rungs)
    slots = recipe.scaling.slots or slots_for(slots, plan["room"], -(-trials // packs))
    stages = whole
    if isinstance(how.scheduler, ASHAScheduler):
        stages = (
            _rungs(answered, trials, how.scheduler._reduction_factor) if how.rungs else _halved(whole, how.scheduler)
        )
    return Run("search", _configs(recipe, space, trials), trials, packs, slots, stages, how.said)


def asked_of(recipe: Recipe, plan: Mapping[str, Json], task: TaskSpec, run: Run) -> Asked:
    """What a probe of a run is to try."""
    batch = recipe.training.per_device_train_batch_size
    most = min(run.slots, max(_MEMBERS, -(-2 * plan["max_rows"] // batch)))
    places = np.linspace(0, len(run.configs) - 1, most).astype(int).tolist()
    return Asked(
        recipe=recipe.model_dump_json(),
        task=task.model_dump_json(),
        configs=[run.configs[place] for place in places],
        members=sorted({1, -(-most // 2), most}),
        max_rank=plan["max_rank"],
        max_rows=plan["max_rows"],
        embeddings=targets_embeddings(recipe),
    )


def foresee(recipe: Recipe, plan: Mapping[str, Json], run: Run, probed: Probed) -> dict[str, Json]:
    """Seconds and memory of a run, as plain data; `parts` is where the longer time goes. `processor_seconds` of all
    workers do not follow from who else uses the machine; `share` of a processor is what the probes had of it."""
    rows = plan["rows"]
    fitted = sum(min(count, MOST_ROWS) for count in rows.values()) / recipe.scaling.num_workers
    head_row = probed.mean("head_row")
    parts = {
        "start": _started(recipe, run) * probed.start,
        "load": probed.mean("load") + probed.mean("encode_row") * sum(rows.values()) / recipe.scaling.num_workers,
        "heads": probed.mean("head") + head_row * fitted,
    }
    fixed = sum(parts.values())
    low, high = (_trained(recipe, plan, run, probed, stopped) for stopped in (True, False))
    seconds = [fixed + sum(found) for found in (low, high)]
    parts |= dict(zip(("steps", "answers"), high, strict=True))
    budget = recipe.search.time_budget_s if run.kind == "search" else None
    if budget is not None:
        seconds = [min(one, budget + parts["start"]) for one in seconds]
    found = probed.found
    computed = sum(parts[name] for name in ("load", "heads")) * run.packs
    processor = [
        round((computed + sum(trained) * run.packs) * probed.mean("share") + run.packs * probed.mean("imports"), 1)
        for trained in (low, high)
    ]
    slots = (run.slots - found[0].members) * plan["slot_bytes"] + run.slots * plan["adapter_bytes"]  # one as evaluated
    grown = max(0, min(_KEPT, plan["steps"]) - found[0].steps) * max(0, max(one.grown_bytes for one in found))
    return {
        "kind": run.kind,
        "trials": run.trials,
        "packs": run.packs,
        "slots": run.slots,
        "seconds": [round(one, 1) for one in seconds],
        "processor_seconds": [one * recipe.scaling.num_workers for one in processor],
        "share": round(probed.mean("share"), 2),
        "parts": {name: round(value, 1) for name, value in parts.items()},
        "ending": run.ending,
        "worker_bytes": max(one.peak_bytes for one in found) + max(0, slots) + grown,
        "workers": run.packs * recipe.scaling.num_workers,
        "timed_steps": sum(one.steps for one in found),
        "timed_members": found[0].members,
    }


def _shown(told: Mapping[str, Json]) -> str:
    low, high = told["seconds"]
    what = f"{told['trials']} trials in {told['packs']} packs" if told["kind"] == "search" else "training"
    time = f"about {said_time(high)}"
    if low < 0.95 * high:
        time = f"{said_time(low)} if ASHA stops trials as it usually does, {said_time(high)} if nobody is stopped"
    spent = ", ".join(f"{name} {said_time(value)}" for name, value in told["parts"].items() if value >= 0.05)
    probes = f"{told['timed_steps']} steps of up to {told['timed_members']} adapters, timed on this machine"
    used = [("", f"others use this machine: a probe had {told['share']:.0%} of a processor, and so will a worker")]
    lines = [
        ("time", f"{what}: {time}, on a Ray that runs"),
        ("", f"at most {spent}"),
        *(used if told["share"] < _ALONE else []),
        ("memory", f"about {size_words(told['worker_bytes'])} in each of {told['workers']} workers, by a probe's peak"),
        ("probe", probes),
    ]
    return "\n".join(f"{name:<9} {text}" for name, text in lines)


def _started(recipe: Recipe, run: Run) -> float:
    """Ray's start-up, in imports one after the other."""
    if run.kind == "training":
        return _START
    at_once = min(run.trials, recipe.search.max_concurrent_trials or run.packs * run.slots)
    return _START + _TRIAL * at_once / (os.cpu_count() or 1)


def _trained(recipe: Recipe, plan: Mapping[str, Json], run: Run, probed: Probed, stopped: bool) -> tuple[float, float]:
    """Seconds of steps and of evaluations of one pack, if trials are stopped as usual, or if nobody is."""
    share, steps, answers = run.trials / run.packs, 0.0, 0.0
    made = [_steps_of(recipe, config, plan) for config in run.configs]
    count, rows = (sum(column) / len(made) for column in zip(*made, strict=True))  # of a trial
    for stage in run.stages:
        alive = share * (stage.alive if stopped else 1.0)
        at_once = max(1.0, min(alive, run.slots))
        alive = max(alive, 1 / run.packs)
        steps += stage.steps * alive * (count / at_once * probed.mean("step") + rows * probed.mean("step_row"))
        answers += alive * stage.answered * probed.mean("evaluate_row") / recipe.scaling.num_workers
    return steps, answers


def _steps_of(recipe: Recipe, config: Mapping[str, Json], plan: Mapping[str, Json]) -> tuple[int, int]:
    """A trial's steps, and the rows that each of its workers trains on."""
    training = recipe.override(config).training
    steps = steps_of(training, _per_epoch(recipe, training, plan))
    return steps, steps * min(training.per_device_train_batch_size, plan["rows"]["train"])


def _per_epoch(recipe: Recipe, training: TrainingSpec, plan: Mapping[str, Json]) -> int:
    return -(-int(plan["rows"]["train"]) // (training.per_device_train_batch_size * recipe.scaling.num_workers))


def _configs(recipe: Recipe, space: Mapping[str, Any], trials: int) -> tuple[dict[str, Json], ...]:
    """Configurations as the space has them: the grids' product, ranges drawn."""
    drawn = np.random.RandomState(recipe.search.seed)
    grids = [grid_of(s) if isinstance(s, Mapping) else None for s in space.values()]
    product = itertools.product(*(grid if grid is not None else [None] for grid in grids))
    found = [dict(zip(space, values, strict=True)) for values in itertools.islice(product, _CONFIGS)]
    while len(found) < min(trials, _CONFIGS):
        found += found[: min(trials, _CONFIGS) - len(found)]
    return tuple(
        {
            key: _value(space[key].sample(random_state=drawn) if grid is None else config[key])
            for (key, grid) in zip(space, grids, strict=True)
        }
        for config in found
    )


def _value(value: Any) -> Json:
    return value.item() if hasattr(value, "item") else value


def _epochs(every: int, steps: int, answered: int) -> tuple[Stage, ...]:
    """Stages of a trial that is evaluated every so many steps and at its end."""
    ends = [*range(every, steps, every), steps]
    return tuple(Stage((end - begin) / steps, 1.0, answered) for begin, end in itertools.pairwise([0, *ends]))


def _rungs(answered: int, trials: int, factor: float) -> tuple[Stage, ...]:
    """Stages of trials of which the better ones go on at each rung, one of `factor`."""
    ends = [*RUNGS, WHOLE]
    return tuple(
        Stage((end - begin) / WHOLE, max(1, math.ceil(trials / factor**number)) / trials, rows_at(end, answered))
        for number, (begin, end) in enumerate(itertools.pairwise([0, *ends]))
    )


def _halved(stages: Sequence[Stage], scheduler: ASHAScheduler) -> tuple[Stage, ...]:
    """Stages of trials whose rungs are evaluations: the first, the fourth, and so on by Tune's reduction factor."""
    factor = scheduler._reduction_factor
    return tuple(
        Stage(stage.steps, factor ** -float(math.floor(math.log(number, factor) + 1) if number else 0), stage.answered)
        for number, stage in enumerate(stages)
    )
