"""Ray Tune's own objects for a search: its trainable, its configuration, and a Tuner that is new or goes on.

    trainable = trainable_of(common_of(recipe, task, output, rungs=True, objectives=objectives), coordinator)
    tuner_in(output, trainable, space, config, callbacks, given=None).fit()

It knows Tune and a run's folder; it starts nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import TuneConfig, Tuner
from ray.tune.schedulers import TrialScheduler

from ray_lora.allowed import listed
from ray_lora.recipe import Recipe, TaskSpec
from ray_lora.search.objectives import Objective, fair_of
from ray_lora.search.steered import Steered
from ray_lora.search.trial import Common, PackTrial
from ray_lora.search.whole_files import tidy, whole_files
from ray_lora.tasks import task_of
from ray_lora.training.job import SIZES


def common_of(recipe: Recipe, task: TaskSpec, output: Path, rungs: bool, objectives: Sequence[Objective]) -> Common:
    """What a search's trials have in common.

    Args:
        task: the recipe's, completed by the training rows.
        output: the run's folder.
        rungs: trials are evaluated at rungs.
    """
    return Common(
        recipe=recipe.model_dump_json(),
        task=task.model_dump_json(),
        output=str(output / "jobs"),
        rungs=rungs,
        measures=any(each.name in SIZES for each in objectives),
        fair=fair_of(objectives, task_of(recipe.task).metric) if recipe.search.groups is not None else None,
    )


def trainable_of(common: Common, coordinator: Any) -> Any:
    """What Tune runs as a trial.

    Args:
        coordinator: the packs' own, whom a trial asks.
    """
    trainable = tune.with_parameters(PackTrial, coordinator=coordinator, common=common, allowed=listed())
    # Tune wants some resource of every trial; one byte of memory leaves all CPUs to the packs
    return tune.with_resources(trainable, {"cpu": 0, "memory": 1})


def tune_config_of(
    config: TuneConfig, algorithm: Steered, scheduler: TrialScheduler | None, first: Objective
) -> TuneConfig:
    """A configuration of Tune's with a search's own algorithm, scheduler and first metric."""
    metric, mode = first
    several = isinstance(getattr(config.search_alg, "metric", None), list)
    if several and scheduler is not None:  # Tune names metrics to searcher and scheduler alike
        scheduler.set_search_properties(metric, mode)
    return dataclasses.replace(
        config,
        metric=None if several else metric,
        mode=None if several else mode,
        search_alg=algorithm,
        scheduler=scheduler,
        max_concurrent_trials=None,  # it limits itself
        reuse_actors=True,
    )


def tuner_in(
    output: Path,
    trainable: Any,
    space: Mapping[str, Any],
    config: TuneConfig,
    callbacks: Sequence[tune.Callback],
    given: tune.RunConfig | None,
) -> Tuner:
    """A Tuner of a run's folder: the one that was killed there, where one was, else a new one.

    Args:
        callbacks: of ours, after those that are given.
        given: a person's own configuration, whose stoppers and callbacks count.
    """
    folder, files = output / "tune", whole_files()
    tidy(folder)
    if any(folder.glob("experiment_state-*.json")):  # else it was killed before its first trial
        return Tuner.restore(
            str(folder), trainable, param_space=dict(space), restart_errored=True, storage_filesystem=files
        )
    return Tuner(
        trainable,
        param_space=dict(space),
        tune_config=config,
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(output),
            storage_filesystem=files,
            stop=getattr(given, "stop", None),
            callbacks=[*(getattr(given, "callbacks", None) or []), *callbacks],
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )
