"""The losses of rows that learn from a teacher beside their own targets, each by its own job's weight and temperature.

    losses = distilled(task, losses, outputs, features, [job.distillation of each row])
    check_taught(job, task, splits)                         # before it trains

It knows rows and their soft targets, not which adapter they come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ray_lora.engine import take_rows
from ray_lora.errors import DataError
from ray_lora.recipe import DistillationSpec, Json
from ray_lora.tasks import Features, Task
from ray_lora.tasks.soft_targets import SOFT, Distilled
from ray_lora.training.job import Job
from ray_lora.training.shards import Splits


def distilled(
    task: Task, losses: Tensor, outputs: Any, features: Sequence[Features], told: Sequence[DistillationSpec]
) -> Tensor:
    """(1 - weight) times each row's loss, and weight times its distance from its soft targets, [rows]; the very losses
    that were given for rows without a teacher.

    Args:
        losses: of `task.loss`. told: of each row, its job's.
    """
    taught = [row for row, spec in enumerate(told) if spec.teaches]
    if not taught:
        return losses
    assert isinstance(task, Distilled)
    index = torch.tensor(taught)
    mine = outputs if len(taught) == len(features) else take_rows(outputs, index)
    index = index.to(losses.device)
    heat = torch.tensor([told[row].temperature for row in taught], dtype=torch.float64)
    far = task.divergence(mine, [features[row] for row in taught], heat.to(losses.device)).to(losses)
    weights = torch.tensor([told[row].weight for row in taught], dtype=torch.float64).to(losses)
    return losses.index_copy(0, index, (1 - weights) * losses[index] + weights * far)


def check_taught(job: Job, task: Task, splits: Splits) -> None:
    """DataError for a job with a teacher whose rows this worker has without soft targets."""
    if not job.distillation.teaches:
        return
    row = next(iter(splits.train.rows.values()), None)
    if not isinstance(task, Distilled) or not (row is None or _has(row)):
        raise DataError(
            f"job {job.name!r} has the teacher {job.distillation.teacher!r}, and its rows have no soft targets of it"
        )


def _has(row: Features) -> bool:
    return all(SOFT in window for window in row.get("windows", [row]))


def taught_by(job: Job, learnt: Mapping[str, str]) -> dict[str, Json]:
    """What a card says of a job's teacher: its ref with a version, its content's hash, temperature and weight.

    Args:
        learnt: what is known of the job's data, its teacher's `teacher.ref` and `teacher.hash` included.
    """
    if job.distillation.teacher is None:
        return {}
    told = {"teacher": learnt.get("teacher.ref", job.distillation.teacher), "sha256": learnt.get("teacher.hash")}
    return {"distillation": job.distillation.model_dump(mode="json") | told}
