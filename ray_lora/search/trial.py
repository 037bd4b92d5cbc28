"""A search trial: one configuration of a Ray Tune search, trained in a pack that it shares with others.

To Ray Tune it is an ordinary Trainable, so every searcher, scheduler, stopper and callback works as it is. It imports
no torch and claims no CPU: it joins a pack, asks for the next evaluation, leaves.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from ray.tune import Trainable
from ray.tune.result import RESULT_DUPLICATE

from ray_lora.allowed import allow
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, Recipe, TaskSpec
from ray_lora.search.origin import read_origin
from ray_lora.search.whole_files import in_place
from ray_lora.training.history import read_history
from ray_lora.training.job import Job
from ray_lora.training.rungs import WHOLE

SEARCHED = ("lora.", "training.", "augmentation", "distillation.weight", "distillation.temperature")


@dataclass(frozen=True)
class Common:
    """What all trials of a search have in common.

    Attributes:
        recipe, task: as JSON; the task is completed by the training rows.
        output: the folder of the jobs' folders.
        rungs: whether trials are evaluated early too.
        measures, fair: as `Job`'s.
    """

    recipe: str
    task: str
    output: str
    rungs: bool = False
    measures: bool = False
    fair: str | None = None

    @cached_property
    def _read(self) -> tuple[Recipe, TaskSpec]:
        return Recipe.model_validate_json(self.recipe), TaskSpec.model_validate_json(self.task)

    def folder(self, trial: str) -> Path:
        """Where a trial's job has its files."""
        return Path(self.output) / trial

    def job(self, trial: str, config: Mapping[str, Any]) -> Job:
        """A trial's job.

        Raises:
            RecipeError: as `job_of`.
        """
        recipe, task = self._read
        origin = read_origin(self.folder(trial))
        warm = origin.card if origin is not None and origin.step else None
        made = job_of(trial, recipe, config, task, self.rungs, warm)
        return replace(made, measures=self.measures, fair=self.fair)


class PackTrial(Trainable):
    """One configuration; `config` maps recipe keys to values."""

    def setup(
        self, config: dict[str, Any], coordinator: Any = None, common: Common | None = None, allowed: Sequence[str] = ()
    ) -> None:
        allow(*allowed)  # what the driver's user allowed: the recipe's task may be his own
        assert common is not None
        self._coordinator, self._common = coordinator, common
        self._joined: str | None = None
        self._begin()

    def step(self) -> dict[str, Any]:
        """The next evaluation of this configuration; after a kill, first those that it had before.

        It joins a pack here and not when it is set up: Tune may start a process for a trial and then, before that is
        there, take one that has become free.
        """
        if self._recalled:
            return self._recalled.popleft()
        if self._joined is None:
            self._join(self.config)
        result: dict[str, Any] = ray.get(self._coordinator.next_evaluation.remote(self._joined))
        if "halted" in result:
            return {RESULT_DUPLICATE: True}  # to Tune: it has ended, and its last result stands
        if "error" in result:
            raise RuntimeError(result["error"])
        return result

    def cleanup(self) -> None:
        if self._joined is not None:
            ray.get(self._coordinator.stop.remote(self._joined))
            self._joined = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serve the next configuration in this process."""
        self.cleanup()
        self._begin()
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For schedulers that pause or clone: the pack writes the state now, this copies it."""
        if self._joined is None:
            self._join(self.config)
        assert self._joined is not None
        ray.get(self._coordinator.checkpoint.remote(self._joined))
        state = self._common.folder(self._joined) / "state"
        if state.exists():
            shutil.copytree(state, Path(checkpoint_dir) / "state", dirs_exist_ok=True)
        (Path(checkpoint_dir) / "job.json").write_text(json.dumps({"job": self._joined}))

    def restore(self, checkpoint_path: Any) -> None:
        """As Tune's, but that the checkpoint is read where it lies."""
        saved = getattr(checkpoint_path, "checkpoint", None)  # Tune's own calls give it with its metrics
        if saved is not None:
            checkpoint_path.checkpoint = in_place(saved)
        super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a checkpoint, this trial's own or (when a scheduler clones) another's."""
        config, trial = self.config, self.trial_id
        self.cleanup()
        self._recalled.clear()
        state = Path(checkpoint) / "state"
        if state.exists():
            mine = self._common.folder(trial) / "state"
            shutil.rmtree(mine, ignore_errors=True)
            shutil.copytree(state, mine)
        self._join(config)

    def _begin(self) -> None:
        """See what a killed run has still to tell: its scheduler decides on each of these evaluations as it did. What
        an announced job reports before its trial comes is the coordinator's to tell."""
        told = recalled(self._common.folder(self.trial_id)) if self._common.rungs else []
        if told and ray.get(self._coordinator.is_announced.remote(self.trial_id)):
            told = []
        self._recalled = deque(told)

    def _join(self, config: Mapping[str, Any]) -> None:
        job = self._common.job(self.trial_id, config)
        ray.get(self._coordinator.submit.remote(job, flat(config), followed=True))
        self._joined = job.name


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"lora": {"r": 8}}` and `{"lora.r": 8}` as the latter."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and prefix + key in ("lora", "training", "distillation")
        values |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return values


def recalled(folder: Path) -> list[dict[str, Any]]:
    """What a trial reported at its rungs, in their order, by its job's folder. Its end is evaluated again."""
    lines = {line["step"]: line for line in read_history(folder) if line.get("rung", {}).get("eighths", WHOLE) < WHOLE}
    return [line["metrics"] | line["rung"] | {"step": step, "done": False} for step, line in sorted(lines.items())]


def job_of(
    name: str,
    recipe: Recipe,
    config: Mapping[str, Any],
    task: TaskSpec,
    rungs: bool = False,
    origin: Mapping[str, Json] | None = None,
) -> Job:
    """The job of one configuration.

    Args:
        rungs: whether it is evaluated early too.
        origin: whose checkpoint it goes on from, for its adapter's card.

    Raises:
        RecipeError: a value is not allowed, or a key cannot differ between adapters on one base.
    """
    values = {key: as_plain(value) for key, value in flat(config).items()}
    other = [key for key in values if not key.startswith(SEARCHED)]
    if other:
        raise RecipeError(
            "a search on one base can try augmentation, distillation's weight and temperature, and keys under lora. "
            f"and training., not {', '.join(other)}; run one search for each value of it"
        )
    mine = recipe.override(values)
    return Job(name, recipe.name, task, mine.lora, mine.training, mine.augmentation, mine.distillation, rungs, origin)


def as_plain(value: Any) -> Any:
    """A configuration's value; numpy's scalars as Python's."""
    return value.item() if hasattr(value, "item") else value
