"""Train one adapter, or several at once on one base, with Ray Train.

    result = LoraTrainer(Recipe.load("examples/tweets.yaml")).fit()
    result.metrics["accuracy"], result.checkpoint.path      # the adapter's PEFT folder

Several recipes that name the same base train in one pack and cost one base:

    results = LoraTrainer([movies, tweets, products]).fit()

The same command goes on where it was killed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray import tune
from ray.train import Checkpoint, Result, RunConfig, ScalingConfig

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import DataError, RayLoraError, RecipeError
from ray_lora.recipe import Json, Recipe
from ray_lora.running.claims import claimed
from ray_lora.running.packs import PackRun, Prepared, check, scaling_of, spread
from ray_lora.running.records import Record
from ray_lora.running.sources import jobs_of
from ray_lora.running.time_left import foreseen_of
from ray_lora.store import open_store, put_once
from ray_lora.tracking import Tracker

if TYPE_CHECKING:
    import ray.data


class LoraTrainer:
    """Fine-tune adapters on Ray Train workers.

    Args:
        recipe: one recipe, or several of different names on one base.
        datasets: `{"train": ..., "validation": ...}` Ray datasets in place of the files of a single recipe.
        scaling_config, run_config: Ray's own; None for the recipe's `scaling` and `output_dir`.
        quiet: show no progress.
    """

    def __init__(
        self,
        recipe: Recipe | Sequence[Recipe],
        *,
        datasets: Mapping[str, ray.data.Dataset] | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        quiet: bool = False,
    ) -> None:
        self.recipes = [recipe] if isinstance(recipe, Recipe) else list(recipe)
        self._single = isinstance(recipe, Recipe)
        names = [each.name for each in self.recipes]
        if not names or len(set(names)) < len(names):
            raise RecipeError(f"recipes need different names; got {names}")
        if datasets is not None and not self._single:
            raise DataError("datasets go with a single recipe; give several recipes their own data.train")
        self.datasets, self.scaling_config, self.run_config, self.quiet = datasets, scaling_config, run_config, quiet

    def fit(self) -> Result | list[Result]:
        """Train; one Result for one recipe, a list in the recipes' order for several.

        A result's checkpoint is the adapter's PEFT folder, its metrics the last validation scores, its error why a
        job failed: then its checkpoint is what the last evaluation before found, or None.

        Raises:
            RayLoraError: something is wrong with a recipe or its data; raised before any worker starts.
        """
        started = time.perf_counter()
        prepared = check({recipe.name: recipe for recipe in self.recipes}, self.datasets, len(self.recipes), self.quiet)
        scaling = self.scaling_config or scaling_of(self.recipes[0])
        prepared, packs = spread(prepared, scaling, len(self.recipes))
        first = located(self.recipes[0], self.run_config)
        text = "\n".join([*(recipe.model_dump_json() for recipe in self.recipes), *prepared.teachers])
        with claimed(first, "train", text) as output:
            records = self._train(prepared, packs, first, output)
        seconds = time.perf_counter() - started
        results = [_result(records[recipe.name], output, seconds) for recipe in self.recipes]
        return results[0] if self._single else results

    def _train(self, prepared: Prepared, packs: int, first: Recipe, output: Path) -> dict[str, Record]:
        """What became of each recipe's job."""
        tracker = Tracker(first.tracking.uri, first.tracking.experiment or first.name, record=output / "mlflow.jsonl")
        identity = {
            k if self._single else f"{n}.{k}": v for n, s in prepared.sources.items() for k, v in s.identity.items()
        }
        tracker.open_parent(str(output), first, identity)
        run = PackRun(
            prepared,
            output,
            tracker,
            title="training",
            scaling_config=self.scaling_config or scaling_of(self.recipes[0]),
            run_config=self.run_config,
            packs=packs,
            foreseen=self._foreseen(prepared),
            quiet=self.quiet,
        )
        run.start()
        for job in jobs_of(prepared.recipes, prepared.sources):
            run.submit(job, {"name": job.name})
        try:
            records = {record.job.name: record for record in run.finish()}
        except BaseException:
            tracker.finish_parent("FAILED")
            tracker.close()
            raise
        failed = any(record.status != "finished" for record in records.values())
        self.costs = dict(run.seconds)  # seconds of all packs' first workers, by what they were spent on
        spent = {"processor_seconds": run.seconds.get("processor", 0.0)}
        tracker.finish_parent("FAILED" if failed else "FINISHED", metrics=spent)
        tracker.close()
        return records

    def _foreseen(self, prepared: Prepared) -> tuple[float, float] | None:
        """What `ray-lora plan` foresaw of this recipe, where it is all that is asked for."""
        if not self._single or self.datasets is not None or self.scaling_config is not None:
            return None
        [recipe] = self.recipes
        source = prepared.sources[recipe.name]
        return foreseen_of(recipe, "training", {split: source.rows(split) for split in source.splits})


def train_recipe(recipe: Recipe, quiet: bool = False) -> dict[str, Json]:
    """Train a recipe's adapter and put it into its store: `{"ref", "adapter", "metrics", "seconds"}`."""
    store = open_store(recipe.store, recipe.tracking.uri)
    result = LoraTrainer(recipe, quiet=quiet).fit()
    assert isinstance(result, Result)
    if result.error is not None:
        raise result.error
    assert result.checkpoint is not None
    assert result.metrics is not None
    folder = Path(result.checkpoint.path)
    entry = put_once(store, Adapter.load(folder), recipe.name)
    metrics = dict(result.metrics)
    seconds = metrics.pop("seconds")
    return {"ref": f"{entry.name}@{entry.version}", "adapter": str(folder), "metrics": metrics, "seconds": seconds}


def located(recipe: Recipe, run_config: RunConfig | tune.RunConfig | None) -> Recipe:
    """The recipe under RunConfig's name and storage path, where those are given.

    What Ray fills in (a name that holds the time, a folder in the home) is not what somebody gave: with it, the same
    command would not find its own run again.
    """
    if run_config is None:
        return recipe
    named = run_config.name is not None and not run_config.name.startswith("ray_train_run-")
    placed = run_config.storage_path != RunConfig().storage_path
    given = {"name": named and run_config.name, "output_dir": placed and run_config.storage_path}
    return recipe.override({key: str(value) for key, value in given.items() if value})


def _result(record: Record, output: Path, seconds: float) -> Result:
    """A failed job's result has the adapter that its last evaluation found, where there was one, and its scores."""
    folder = output / "jobs" / record.job.name / "adapter"
    done, kept = record.status == "finished", folder.is_dir()
    return Result(
        metrics={**record.metrics, "loss": record.loss, "seconds": seconds} if kept else None,
        checkpoint=Checkpoint.from_directory(str(folder)) if kept else None,
        error=None if done else RayLoraError(record.error or f"job {record.job.name!r} was {record.status}"),
        path=str(output / "jobs" / record.job.name),
    )
