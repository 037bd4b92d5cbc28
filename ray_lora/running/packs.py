"""The packs of one run: start them, watch them, and bring their results home.

A trainer and a search both use this: it checks the recipes, puts the rows into the object store, starts the coordinator
and a trainer of Ray Train's for each pack, and passes on what the packs report to the table and the tracker.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig

from ray_lora.allowed import environment
from ray_lora.bases.load import Base, describe_base
from ray_lora.errors import RayLoraError, RecipeError
from ray_lora.recipe import Recipe
from ray_lora.running.allocator import WORKER_ENV
from ray_lora.running.coordinator import Coordinator
from ray_lora.running.devices import afforded
from ray_lora.running.distilling import with_soft_targets
from ray_lora.running.local_ray import start_ray
from ray_lora.running.pack_trainer import begin_worker, pack_trainer
from ray_lora.running.plan import Plan, make_plan, slots_for, targets_embeddings
from ray_lora.running.progress import Progress
from ray_lora.running.records import Record
from ray_lora.running.sources import Source, prepare
from ray_lora.running.teachers import anywhere
from ray_lora.running.time_left import TimeLeft
from ray_lora.running.turns import Turns
from ray_lora.running.watch import Watch
from ray_lora.running.worker import PackConfig
from ray_lora.tasks import task_of
from ray_lora.training.job import Job

if TYPE_CHECKING:
    import ray.data

    from ray_lora.tracking import Tracker

_ENVIRONMENT = {  # Ray Train's defaults are for clusters; a start costs seconds less with these on one machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3",  # what a killed search may forget of its finished trials
}
_FEW_CORES = 4  # up to so many, processes that start wait for each other
_MAX_FAILURES = 3  # times a pack's workers are started again unless RunConfig says otherwise


@dataclass(frozen=True)
class Prepared:
    """Recipes that were checked against their data and their base. Nothing runs yet."""

    recipes: dict[str, Recipe]
    sources: dict[str, Source]
    base: Base  # on the meta device
    plan: Plan

    @property
    def recipe(self) -> Recipe:
        """The first recipe; base, scaling and tracking are the same in all."""
        return next(iter(self.recipes.values()))

    @property
    def teachers(self) -> list[str]:
        """Hashes of the recipes' teachers: a run goes on with the very one that it began with, whatever a ref means."""
        hashes = (source.identity.get("teacher.hash") for source in self.sources.values())
        return [known for known in hashes if known is not None]


def check(
    recipes: Mapping[str, Recipe],
    datasets: Mapping[str, ray.data.Dataset] | None = None,
    most_slots: int | None = None,
    quiet: bool = True,
) -> Prepared:
    """Check recipes that are to share one base, and make their rows ready; Ray is started where none runs.

    Raises:
        RayLoraError: something does not fit; the message says what.
    """
    first = next(iter(recipes.values()))
    for recipe in recipes.values():
        if recipe.base != first.base or recipe.scaling != first.scaling:
            raise RecipeError(
                f"recipes {first.name!r} and {recipe.name!r} differ in base or scaling; one pack trains on one base"
            )
    device = "cuda" if first.scaling.use_gpu else "cpu"
    with ThreadPoolExecutor(1) as aside:  # Ray starts other processes meanwhile, and waits for them
        described = aside.submit(describe_base, first.base, device)
        start_ray()
        base = described.result()
    pieces = max(4, first.scaling.num_workers)
    sources = {name: prepare(recipe, datasets, pieces, base.processor, quiet) for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        if recipe.training.load_best_model_at_end and "validation" not in sources[name].splits:
            raise RecipeError(
                f"{name}: training.load_best_model_at_end compares scores on validation rows; set data.validation, or "
                "leave it out"
            )
    sources = {name: with_soft_targets(recipe, sources[name], base, quiet) for name, recipe in recipes.items()}
    plans = [make_plan(recipe, sources[name].task, base, most_slots) for name, recipe in recipes.items()]
    widest = max(plans, key=lambda plan: plan.max_rank)
    slots = min(plan.slots for plan in plans)
    return Prepared(dict(recipes), sources, base, replace(widest, slots=slots))


def spread(prepared: Prepared, scaling: ScalingConfig, jobs: int) -> tuple[Prepared, int]:
    """Packs for so many jobs: as many as the cluster's devices allow, each with no more slots than its share.

    Raises:
        RecipeError: as `afforded`.
    """
    workers = scaling.num_workers[0] if isinstance(scaling.num_workers, tuple) else scaling.num_workers
    assert isinstance(workers, int)
    told: Any = scaling.resources_per_worker or {}  # a search space of Tune's is none of a pack's
    share = float(told.get("GPU" if scaling.use_gpu else "CPU", 1.0))
    asked = prepared.recipe.scaling.packs
    most = afforded(workers, bool(scaling.use_gpu), asked, share)
    packs = asked or max(1, min(most, jobs))
    slots = prepared.recipe.scaling.slots or slots_for(prepared.plan.slots, prepared.plan.room, -(-jobs // packs))
    return replace(prepared, plan=replace(prepared.plan, slots=slots)), packs


class PackRun:
    """Running packs.

    Args:
        prepared: from `check`.
        output: the run's folder, seen by all workers.
        scaling_config, run_config: Ray's, for each pack; None for the recipe's own.
        tracker: where records go.
        packs: how many packs.
        jobs: how many jobs will probably be submitted; at_once: how many of them at the same time, at most.
        turns: as the coordinator's.
        foreseen: seconds of the whole run, at least and at most; None where they are not known.
    """

    def __init__(
        self,
        prepared: Prepared,
        output: Path,
        tracker: Tracker,
        *,
        title: str,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | tune.RunConfig | None = None,
        packs: int = 1,
        jobs: int = 0,
        at_once: int | None = None,
        turns: Turns | None = None,
        foreseen: tuple[float, float] | None = None,
        quiet: bool = False,
    ) -> None:
        self.prepared, self.output, self.tracker = prepared, output, tracker
        self.scaling = scaling_config or scaling_of(prepared.recipe)
        self.run_config = run_config
        actor = ray.remote(Coordinator).options(num_cpus=0, max_concurrency=1000)
        self.coordinator: Any = actor.remote(jobs, at_once, turns)
        task = task_of(prepared.recipe.task)
        rows = {name: source.rows("validation") for name, source in prepared.sources.items()}
        self._progress = progress = Progress(title, task.metric, quiet, task.metrics[task.metric], rows)
        progress.time_left = TimeLeft(jobs, foreseen)
        identities = {name: source.identity for name, source in prepared.sources.items()}
        self._watch = Watch(self.coordinator, output / "jobs", tracker, progress, identities)
        self.seconds: dict[str, float] = {}
        self.error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"pack-{number}", daemon=True)
            for number in range(packs)
        ]

    def start(self) -> None:
        """Start the packs; they wait for jobs."""
        if len(ray.nodes()) == 1:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
        for thread in self._threads:
            thread.start()
        self._watch.start()

    def ready(self) -> bool:
        """On few cores, wait until a pack takes jobs or none will: its way there is the longest of all processes'.
        Whether there is anything to do for what begins after it."""
        if not self._few_cores:
            return True
        try:
            told: bool = ray.get(self.coordinator.ready.remote())
        except RayActorError:  # `finish` says so
            return False
        return told

    @property
    def _few_cores(self) -> bool:
        return len(ray.nodes()) == 1 and ray.cluster_resources().get("CPU", 0) <= _FEW_CORES

    @property
    def records(self) -> list[Record]:
        """All jobs, as the last look found them; two looks a second."""
        return self._watch.records

    def left(self) -> str:
        """The time left, as people say it; empty while nothing is known of it."""
        return self._progress.left(self.records)

    def expect_more(self) -> None:
        """One job more will come than was said at the start."""
        self._progress.time_left.expected += 1

    def say(self, text: str) -> None:
        """Tell whoever watches, unless nothing is to be shown."""
        self._progress.say(text)

    def submit(self, job: Job, config: dict[str, Any]) -> None:
        """Queue a job."""
        ray.get(self.coordinator.submit.remote(job, config))

    def finish(self) -> list[Record]:
        """Wait until every job has ended; returns what became of them.

        Raises:
            RayLoraError: the coordinator died, and the packs with it.
            Exception: what a pack failed with, once Ray Train has given it up.
        """
        with contextlib.suppress(RayActorError):
            ray.get(self.coordinator.close.remote())
        for thread in self._threads:
            thread.join()
        records = self._watch.end()
        if self.error is not None:
            raise self.error
        try:
            self.seconds = ray.get(self.coordinator.seconds.remote())
        except RayActorError:
            raise RayLoraError(
                "the run's coordinator has died; give the same command again: it goes on from the last checkpoints"
            ) from None
        return records

    def _run(self, number: int) -> None:
        if number > 0 and not self.ready():  # several that begin at once come late, all of them
            return
        plan = self.prepared.plan
        told = PackConfig(
            pack=f"pack-{number}",
            coordinator=self.coordinator,
            base=anywhere(self.prepared.recipe.base, self.prepared.base),
            sources=self.prepared.sources,
            output=str(self.output / "jobs"),
            slots=plan.slots,
            max_rank=plan.max_rank,
            max_rows=plan.max_rows,
            embeddings=any(targets_embeddings(recipe) for recipe in self.prepared.recipes.values()),
        )
        trainer = pack_trainer(
            begin_worker,
            {"pack": ray.put(told)},  # opened by workers alone: Train's own actors import no engine
            self.scaling,
            self._ray_config(number),
        )
        try:
            trainer.fit()
        except Exception as error:  # the thread hands it to finish(); trials that wait must learn of it now
            self.error = error
            with contextlib.suppress(RayActorError):
                ray.get(self.coordinator.fail.remote(f"pack {number} failed: {error}"))

    def _ray_config(self, number: int) -> RunConfig:
        given = None if isinstance(self.run_config, tune.RunConfig) else self.run_config  # that one is for the trials
        asked = given is not None and given.failure_config != FailureConfig()  # Ray fills in one that never tries again
        return RunConfig(
            name=f"pack-{number}",
            storage_path=str((self.output / "ray").resolve()),
            failure_config=given.failure_config if given and asked else FailureConfig(max_failures=_MAX_FAILURES),
            callbacks=given.callbacks if given else None,
            worker_runtime_env={"env_vars": {**WORKER_ENV, **environment()}},  # type: ignore[call-arg]  # mypy sees the class of Train v1
        )


def scaling_of(recipe: Recipe) -> ScalingConfig:
    """Ray's ScalingConfig of a recipe: one CPU (and one GPU where asked for) a worker."""
    scaling = recipe.scaling
    resources = {"CPU": 1.0} | ({"GPU": 1.0} if scaling.use_gpu else {})
    return ScalingConfig(num_workers=scaling.num_workers, use_gpu=scaling.use_gpu, resources_per_worker=resources)
