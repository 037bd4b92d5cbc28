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
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.tune import ResultGrid, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler

from ray_lora.adapters.adapter import Adapter
from ray_lora.data.groups import groups_of
from ray_lora.errors import RayLoraError, RecipeError
from ray_lora.recipe import Json, Recipe, TrainingSpec
from ray_lora.running.claims import claimed
from ray_lora.running.large import Encoded
from ray_lora.running.packs import PackRun, Prepared, check, scaling_of, spread
from ray_lora.running.plan import targets_embeddings
from ray_lora.running.time_left import foreseen_of
from ray_lora.running.trainer import located
from ray_lora.running.turns import Turns
from ray_lora.search import report
from ray_lora.search.alarms import few_members
from ray_lora.search.asking import keep_recipe, kept_recipe, read_state
from ray_lora.search.cloning import Searched
from ray_lora.search.desk import Desk
from ray_lora.search.grid import EvenGrid
from ray_lora.search.ledger import Ledger
from ray_lora.search.objectives import Objective
from ray_lora.search.space import (
    DEFAULT_SPACE,
    adds_default,
    check_objectives,
    check_space,
    configured,
    count_trials,
    default_of,
    sampled,
    values_of,
    with_bounds,
)
from ray_lora.search.steered import Between, Steered, attach
from ray_lora.search.stopping import (
    FACTOR,
    Heard,
    Remembered,
    Stopping,
    check_stopping,
    listening,
    resident,
    stopping_of,
)
from ray_lora.search.trial import flat
from ray_lora.search.tune_objects import common_of, trainable_of, tune_config_of, tuner_in
from ray_lora.store import open_store, put_once
from ray_lora.tracking import Tracker
from ray_lora.training.member import steps_of

if TYPE_CHECKING:
    import ray.data

_logger = logging.getLogger(__name__)


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
        self._parts = [part for part in (param_space, datasets, scaling_config, run_config) if part is not None]
        self.seconds = 0.0
        self.folder: Path | None = None

    def fit(self) -> ResultGrid:
        """Run the search and return Ray's own ResultGrid; `summary.trials` has the same with their adapter folders.

        Raises:
            RayLoraError: something is wrong with the recipe, its data or its space; raised before any worker starts.
        """
        objectives = check_objectives(self.recipe, self.tune_config if self._given else None)
        trials = count_trials(self.space, self.tune_config.num_samples, self._added)
        recipe = with_bounds(self.recipe, self.space)
        prepared = check({self.recipe.name: recipe}, self.datasets, trials, self.quiet)
        if not prepared.sources[recipe.name].rows("validation"):
            raise RecipeError("a search compares scores on validation rows; set data.validation")
        prepared = self._grouped(prepared)
        located_at = located(self.recipe, self.run_config)
        text = self.recipe.model_dump_json() + repr(sorted((key, values_of(s)) for key, s in self.space.items()))
        text += "".join(prepared.teachers)
        with claimed(located_at, "search", text) as output:
            self.folder = output
            return self._search(prepared, trials, output, objectives)

    def _grouped(self, prepared: Prepared) -> Prepared:
        """The same with the groups of its validation rows, where the search asks for them."""
        if self.recipe.search.groups is None:
            return prepared
        source = prepared.sources[self.recipe.name]
        if self.datasets is not None or isinstance(source.splits["validation"], Encoded):
            raise RecipeError(
                "search.groups reads the groups of validation rows from files of few rows; give data.validation such "
                "files, or leave search.groups out"
            )
        told = dataclasses.replace(source, groups=groups_of(self.recipe))
        return dataclasses.replace(prepared, sources={**prepared.sources, self.recipe.name: told})

    def _search(self, prepared: Prepared, trials: int, output: Path, objectives: Sequence[Objective]) -> ResultGrid:
        metric = objectives[0].name
        recipe = prepared.recipe
        tracker = Tracker(
            recipe.tracking.uri, recipe.tracking.experiment or recipe.name, record=output / "mlflow.jsonl"
        )
        tracker.open_parent(str(output), self.recipe, prepared.sources[recipe.name].identity)
        started = time.perf_counter()
        self.stopping = self._stopping(prepared, trials)
        if recipe.scaling.slots is None:
            slots = resident(prepared.plan.slots, prepared.plan.room, self.stopping.rungs)
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
            turns=Turns(metric, objectives[0].mode, FACTOR) if self._halves else None,
            foreseen=self._foreseen(prepared, output),
            quiet=self.quiet,
        )
        alarms = few_members(recipe, prepared.plan, packs, trials, at_once)
        for alarm in alarms:
            _logger.warning(alarm)
        run.say(self.stopping.said)
        run.start()
        keep_recipe(output, self.recipe, plain=self._given is None and not self._parts)
        task = prepared.sources[recipe.name].task
        common = common_of(self.recipe, task, output, self.stopping.rungs, objectives)
        tuner = self._tuner(trainable_of(common, run.coordinator), output, objectives, at_once)
        try:
            try:
                desk = Desk(output, self._searched(prepared, *objectives[0]), run, common)
                run.ready()
                attach(tuner, desk)
                with listening(str(output), run.coordinator):
                    grid = EvenGrid(tuner.fit()._experiment_analysis)
                self.seconds = time.perf_counter() - started
            finally:
                records = run.finish()
        except BaseException:
            tracker.close()  # its runs stay open: the same command goes on in them
            raise
        self.costs = dict(run.seconds)  # seconds of all packs' first workers, by what they were spent on
        rows = prepared.sources[recipe.name].rows("validation")
        default = default_of(self.recipe, [*self.space, *desk.ledger.keys])
        summary = report.summarise(
            grid, records, output, objectives, self.seconds, rows, default, self.stopping.said, alarms
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
        desk.close()
        self.link = tracker.link()
        return grid

    def _foreseen(self, prepared: Prepared, output: Path) -> tuple[float, float] | None:
        """What `ray-lora plan` foresaw of this recipe, where it is all that is asked for and nothing of it is done."""
        if self._given is not None or self._parts or (output / "jobs").exists():
            return None
        source = prepared.sources[self.recipe.name]
        return foreseen_of(self.recipe, "search", {split: source.rows(split) for split in source.splits})

    @property
    def _halves(self) -> bool:
        """Whether ASHA of ours stops trials at rungs: it hears of those of one step in an order that is fair."""
        return self._given is None and self.stopping.rungs and isinstance(self.stopping.scheduler, ASHAScheduler)

    def _stopping(self, prepared: Prepared, trials: int) -> Stopping:
        """How this search ends early, now that its rows are counted."""
        steps, rows = self._steps(prepared, self.recipe.training), prepared.sources[self.recipe.name].rows("validation")
        return stopping_of(self.recipe, self.space, self._given, trials, steps, rows)

    def _steps(self, prepared: Prepared, training: TrainingSpec) -> int:
        """How many steps so much training takes."""
        scaling = self.scaling_config or scaling_of(self.recipe)
        workers = scaling.num_workers[0] if isinstance(scaling.num_workers, tuple) else scaling.num_workers
        assert isinstance(workers, int)
        rows = prepared.sources[self.recipe.name].rows("train")
        return steps_of(training, -(-rows // (training.per_device_train_batch_size * workers)))

    def _searched(self, prepared: Prepared, metric: str, mode: str) -> Searched:
        """What clones are checked against."""
        source = prepared.sources[self.recipe.name]
        return Searched(
            self.recipe,
            source.task,
            self.stopping.rungs,
            metric,
            mode,
            source.rows("validation"),
            prepared.plan.max_rank,
            any(targets_embeddings(recipe) for recipe in prepared.recipes.values()),
            partial(self._steps, prepared),
        )

    def _tuner(self, trainable: Any, output: Path, objectives: Sequence[Objective], at_once: int) -> Tuner:
        algorithm = Steered(self.tune_config.search_alg, at_once)
        config = tune_config_of(self.tune_config, algorithm, self.stopping.scheduler, objectives[0])
        callbacks: list[tune.Callback] = []
        if self._given is None and isinstance(self.stopping.scheduler, ASHAScheduler):
            callbacks.append(Remembered(self.stopping.scheduler))
        callbacks.append(Between(algorithm))
        if self._halves:
            callbacks.append(Heard(str(output)))
        given = self.run_config if isinstance(self.run_config, tune.RunConfig) else None
        return tuner_in(output, trainable, self.space, config, callbacks, given)


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


def resume_search(folder: Path, quiet: bool = False) -> dict[str, Json]:
    """Go on with a search that was stopped or killed, with the recipe that it was begun with; as `search_recipe`.

    Raises:
        RecipeError: it runs, it has come to its end, or a program began it with more than a recipe.
    """
    state = read_state(folder)
    if state["running"]:
        raise RecipeError(f"search {folder.name!r} is running; `ray-lora search status {folder.name}` shows it")
    if state["ended"] == "finished":
        raise RecipeError(f"search {folder.name!r} has come to its end; begin another one, with its own name=...")
    if state["ended"] == "stopped":
        Ledger.read(folder).reopen()
    return search_recipe(kept_recipe(folder), quiet)
