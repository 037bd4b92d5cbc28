"""Search ranks, rates and everything else of `lora` and `training` with Ray Tune, on one shared base.

    results = LoraTuner(recipe, param_space={"lora.r": tune.grid_search([2, 4, 8, 16])}).fit()
    results.get_best_result().metrics, results.get_best_result().config

Every configuration is a Ray Tune trial; that trials share a base is invisible to Tune. The same command goes on where
it was killed and repeats no finished trial.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.tune import ResultGrid, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from ray_lora.adapters.adapter import Adapter
from ray_lora.allowed import listed
from ray_lora.errors import RayLoraError, RecipeError
from ray_lora.recipe import Json, Recipe
from ray_lora.running.claims import claimed
from ray_lora.running.packs import PackRun, Prepared, check, scaling_of, spread
from ray_lora.running.trainer import located
from ray_lora.search import report
from ray_lora.search.alarms import few_members
from ray_lora.search.grid import EvenGrid
from ray_lora.search.space import (
    DEFAULT_SPACE,
    adds_default,
    check_space,
    configured,
    count_trials,
    default_of,
    sampled,
    scored_by,
    values_of,
    with_bounds,
)
from ray_lora.search.stopping import Remembered, Stopping, check_stopping, stopping_of
from ray_lora.search.trial import PackTrial, flat
from ray_lora.store import open_store, put_once
from ray_lora.tracking import Tracker
from ray_lora.training.member import steps_of

if TYPE_CHECKING:
    import ray.data

_logger = logging.getLogger(__name__)
_RESIDENT = 4  # times as many trials as fill a pass are in a pack that most of them leave at the first rungs


class LoraTuner:
    """A Ray Tune search whose trials share one base.

    Args:
        recipe: what all configurations have in common.
        param_space: Ray's own, over recipe keys (`"lora.r"`, `"training.learning_rate"`); None for the recipe's.
        tune_config: Ray's own; None for the recipe's `search`.
        datasets, scaling_config: as `LoraTrainer`.
        run_config: Ray Tune's for the trials (name, storage path, stoppers, callbacks), or Ray Train's for the packs.
        quiet: show no progress.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        param_space: Mapping[str, Any] | None = None,
        tune_config: TuneConfig | None = None,
        datasets: Mapping[str, ray.data.Dataset] | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | tune.RunConfig | None = None,
        quiet: bool = False,
    ) -> None:
        if param_space is None and recipe.search.space is None:
            recipe = recipe.override({"search.space": DEFAULT_SPACE})
        self.recipe = recipe
        self.space = flat(param_space) if param_space is not None else sampled(recipe)
        check_space(self.space, recipe)
        check_stopping(recipe, self.space)
        self._given = tune_config
        self._added = int(tune_config is None and adds_default(recipe, self.space))
        self.tune_config = tune_config or configured(recipe, self.space)
        self.datasets, self.scaling_config, self.run_config, self.quiet = datasets, scaling_config, run_config, quiet
        self.seconds = 0.0
        self.folder: Path | None = None

    def fit(self) -> ResultGrid:
        """Run the search and return Ray's own ResultGrid; `summary.trials` has the same with their adapter folders.

        Raises:
            RayLoraError: something is wrong with the recipe, its data or its space; raised before any worker starts.
        """
        metric, mode = scored_by(self.recipe, self.tune_config)
        trials = count_trials(self.space, self.tune_config.num_samples, self._added)
        recipe = with_bounds(self.recipe, self.space)
        prepared = check({self.recipe.name: recipe}, self.datasets, trials, self.quiet)
        if not prepared.sources[recipe.name].rows("validation"):
            raise RecipeError("a search compares scores on validation rows; set data.validation")
        located_at = located(self.recipe, self.run_config)
        text = self.recipe.model_dump_json() + repr(sorted((key, values_of(s)) for key, s in self.space.items()))
        text += "".join(prepared.teachers)
        with claimed(located_at, "search", text) as output:
            self.folder = output
            return self._search(prepared, trials, output, metric, mode)

    def _search(self, prepared: Prepared, trials: int, output: Path, metric: str, mode: str) -> ResultGrid:
        recipe = prepared.recipe
        tracker = Tracker(
            recipe.tracking.uri, recipe.tracking.experiment or recipe.name, record=output / "mlflow.jsonl"
        )
        tracker.open_parent(str(output), self.recipe, prepared.sources[recipe.name].identity)
        started = time.perf_counter()
        self.stopping = self._stopping(prepared, trials)
        if self.stopping.rungs and recipe.scaling.slots is None:  # all come to the first rung before any goes on
            slots = min(prepared.plan.room, _RESIDENT * prepared.plan.slots)
            prepared = dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, slots=slots))
        prepared, packs = spread(prepared, self.scaling_config or scaling_of(recipe), trials)
        at_once = self.tune_config.max_concurrent_trials or packs * prepared.plan.slots
        run = PackRun(
            prepared,
            output,
            tracker,
            title=f"search {recipe.name}",
            scaling_config=self.scaling_config,
            run_config=self.run_config,
            packs=packs,
            jobs=trials - len(list(output.glob("jobs/*/adapter"))),
            at_once=at_once,
            quiet=self.quiet,
        )
        alarms = few_members(recipe, prepared.plan, packs, trials, at_once)
        for alarm in alarms:
            _logger.warning(alarm)
        run.say(self.stopping.said)
        run.start()
        tuner = self._tuner(prepared, run, output, metric, mode, at_once)
        try:
            try:
                grid = EvenGrid(tuner.fit()._experiment_analysis)
                self.seconds = time.perf_counter() - started
            finally:
                records = run.finish()
        except BaseException:
            tracker.close()  # its runs stay open: the same command goes on in them
            raise
        self.costs = dict(run.seconds)  # seconds of all packs' first workers, by what they were spent on
        rows = prepared.sources[recipe.name].rows("validation")
        default = default_of(self.recipe, self.space)
        summary = report.summarise(
            grid, records, output, metric, mode, self.seconds, rows, default, self.stopping.said, alarms
        )
        self.summary = report.write(summary, tracker, output)
        best = self.summary.best
        if best is not None and best.adapter is not None:
            if recipe.store != "mlflow":  # that store registers what is put into it
                tracker.register(
                    Path(best.adapter), recipe.name, tags={"score": f"{metric} {best.metrics[metric]:.4f}"}
                )
            spent = {"seconds": self.seconds, "processor_seconds": run.seconds.get("processor", 0.0)}
            tracker.finish_parent("FINISHED", {"job": best.name, "config": best.config}, best.metrics | spent)
        else:
            tracker.finish_parent("FAILED")
        tracker.close()
        self.link = tracker.link()
        return grid

    def _stopping(self, prepared: Prepared, trials: int) -> Stopping:
        """How this search ends early, now that its rows are counted."""
        source, training = prepared.sources[self.recipe.name], self.recipe.training
        workers = self.recipe.scaling.num_workers
        per_epoch = -(-source.rows("train") // (training.per_device_train_batch_size * workers))
        steps, rows = steps_of(training, per_epoch), source.rows("validation")
        return stopping_of(self.recipe, self.space, self._given, trials, steps, rows)

    def _tuner(self, prepared: Prepared, run: PackRun, output: Path, metric: str, mode: str, at_once: int) -> Tuner:
        trainable = tune.with_parameters(
            PackTrial,
            coordinator=run.coordinator,
            recipe=self.recipe.model_dump_json(),
            task=prepared.sources[self.recipe.name].task.model_dump_json(),
            output=str(output / "jobs"),
            allowed=listed(),
            rungs=self.stopping.rungs,
        )
        # Tune wants some resource of every trial; one byte of memory leaves all CPUs to the packs
        trainable = tune.with_resources(trainable, {"cpu": 0, "memory": 1})
        config = dataclasses.replace(
            self.tune_config,
            metric=metric,
            mode=mode,
            scheduler=self.stopping.scheduler,
            max_concurrent_trials=at_once,
            reuse_actors=True,
        )
        if isinstance(config.search_alg, BasicVariantGenerator):  # limits itself, and nobody else may
            config.search_alg.max_concurrent = config.search_alg.max_concurrent or at_once
            config.max_concurrent_trials = None
        path = str(output / "tune")
        if Tuner.can_restore(path):
            return Tuner.restore(path, trainable, param_space=self.space, restart_errored=True)
        given = self.run_config
        callbacks = list(getattr(given, "callbacks", None) or []) if isinstance(given, tune.RunConfig) else []
        if self._given is None and isinstance(self.stopping.scheduler, ASHAScheduler):
            callbacks.append(Remembered(self.stopping.scheduler))
        return Tuner(
            trainable,
            param_space=self.space,
            tune_config=config,
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(output),
                stop=getattr(given, "stop", None),
                callbacks=callbacks or None,
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )


def search_recipe(recipe: Recipe, quiet: bool = False) -> dict[str, Json]:
    """Run a recipe's search and put the best adapter into its store as `champion`.

    Returns:
        `report.Summary` as a dict, with `best["ref"]`, where the best lies in the store, and `link`, where MLflow shows
        the search.
    """
    store = open_store(recipe.store, recipe.tracking.uri)
    tuner = LoraTuner(recipe, quiet=quiet)
    tuner.fit()
    best = tuner.summary.best
    if best is None:
        errors = [trial.error for trial in tuner.summary.trials if trial.error]
        why = f"the first error is: {errors[0]}" if errors else "give it more time, or a smaller training.eval_steps"
        raise RayLoraError(f"none of the search's {len(tuner.summary.trials)} trials was evaluated; {why}")
    assert best.adapter is not None
    entry = put_once(store, Adapter.load(Path(best.adapter)), recipe.name, aliases=("champion",))
    found = dataclasses.asdict(tuner.summary)
    return found | {"best": found["best"] | {"ref": f"{entry.name}@{entry.version}"}, "link": tuner.link}
