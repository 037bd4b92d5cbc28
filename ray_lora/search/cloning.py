"""A new trial with another one's configuration and other values for some keys: checked, and its beginning laid out.

    config, told = begin_clone(searched, jobs, "1a2b3_00003", parent, "1a2b3_00003-1", request)
    told      # {"trial": "1a2b3_00003-1", "begins": "from step 12 of 1a2b3_00003", "step": 12, ...}

It begins from its parent's last checkpoint where the adapters are of the same form: all of `lora` but the dropout, so
that the same numbers mean the same change of the base. Then it is that configuration, gone on with alone from that
checkpoint: the optimizer's moments, the step and the place in the rows are the parent's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, LoraSpec, Recipe, TaskSpec, TrainingSpec, check_key
from ray_lora.running.plan import largest_rank, targets_embeddings
from ray_lora.search.asking import Request
from ray_lora.search.origin import Origin, read_origin, write_origin
from ray_lora.search.trial import as_plain, flat, job_of
from ray_lora.training.job import Job
from ray_lora.training.state import step_of


@dataclass(frozen=True)
class Searched:
    """What a search's trials have in common.

    Attributes:
        rungs: whether they are evaluated early.
        rows: validation rows.
        max_rank, embeddings: what the packs' engines were built for.
        steps: how many steps so much training takes.
    """

    recipe: Recipe
    task: TaskSpec
    rungs: bool
    metric: str
    mode: str
    rows: int
    max_rank: int
    embeddings: bool
    steps: Callable[[TrainingSpec], int]


def begin_clone(
    searched: Searched, jobs: Path, parent: str, config: Mapping[str, Any], name: str, request: Request
) -> tuple[dict[str, Any], dict[str, Json]]:
    """Check a clone and lay its checkpoint and its origin into its job's folder.

    Args:
        jobs: the folder of the jobs' folders.
        parent, config: the trial that is cloned, and its configuration.
        name: the clone's.

    Returns:
        Its configuration, and what is said of it.

    Raises:
        RecipeError: a key cannot be searched, a value is not allowed, nothing is changed, or nothing is left to do.
        AdapterError: the parent's checkpoint is torn.
    """
    old = {key: as_plain(value) for key, value in flat(config).items()}
    changed = old | dict(request.changes)
    if changed == old:
        raise RecipeError("a clone needs at least one key=value that differs, for example training.learning_rate=0.001")
    was = job_of(parent, searched.recipe, old, searched.task)
    job = _checked(searched, changed, request, name)
    step, why = _warm(jobs / parent, was, job, request.fresh)
    total = searched.steps(job.training)
    if step >= total:
        raise RecipeError(
            f"trial {parent!r} has a checkpoint of step {step} and the clone would have {total} steps; raise "
            "training.num_train_epochs, or begin from nothing with --fresh"
        )
    folder = jobs / name
    shutil.rmtree(folder, ignore_errors=True)  # of a clone that a kill left before it was taken note of
    if step:
        shutil.copytree(jobs / parent / "state", folder / "state")
        step = step_of(folder / "state") or 0  # the parent may have written a later one meanwhile
    before = read_origin(jobs / parent)
    warm = before.card if before is not None and before.step else None
    write_origin(folder, Origin(parent, step, was.training.model_dump(mode="json") if step else {}, warm))
    begins = f"from step {step} of {parent}" if step else "from nothing"
    return changed, {"trial": name, "parent": parent, "step": step, "total": total, "begins": begins, "why": why}


def _checked(searched: Searched, config: Mapping[str, Any], request: Request, name: str) -> Job:
    """The clone's job, which the packs' engines can hold."""
    for key in request.changes:
        check_key(key, searched.recipe.task.type)
    job = job_of(name, searched.recipe, config, searched.task, searched.rungs)
    if searched.rungs and "training.eval_steps" in request.changes:
        raise RecipeError("trials of this search are evaluated at rungs; leave training.eval_steps out")
    alone = searched.recipe.model_copy(
        update={"lora": job.lora, "search": searched.recipe.search.model_copy(update={"space": None})}
    )
    if (rank := largest_rank(alone)) > searched.max_rank:
        raise RecipeError(
            f"rank {rank} exceeds this search's max_rank {searched.max_rank}, which follows from what it was begun "
            "with; lower the rank, or begin another search"
        )
    if targets_embeddings(alone) and not searched.embeddings:
        raise RecipeError("this search's packs hold no adapters of embeddings; begin another search that targets them")
    return job


def _warm(parent: Path, was: Job, job: Job, fresh: bool) -> tuple[int, str]:
    """From which step of its parent's a clone goes on, 0 for none; and why."""
    if fresh:
        return 0, "it was asked for"
    form = LoraSpec.model_fields.keys() - {"lora_dropout"}
    other = [f"lora.{key}" for key in sorted(form) if getattr(was.lora, key) != getattr(job.lora, key)]
    if other:
        return 0, f"its {', '.join(other)} differs, so the checkpoint is of another form"
    step = step_of(parent / "state")
    if not step:
        return 0, f"{parent.name} has no checkpoint yet"
    return step, "the last checkpoint of its parent"
