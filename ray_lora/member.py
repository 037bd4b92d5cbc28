"""One job while it is in a pack: where it stands, and which rows come next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ray_lora.job import Job
from ray_lora.recipe import TrainingSpec
from ray_lora.shards import Splits
from ray_lora.tasks import Task


@dataclass
class Member:
    """A job in its pack: its slot, its place in the data, what it has not reported yet."""

    job: Job
    slot: int
    task: Task
    splits: Splits
    total: int
    per_epoch: int
    batch: int
    step: int = 0
    losses: list[float] = field(default_factory=list)
    grad_norm: float = 0.0
    order: tuple[int, list[int]] = (-1, [])  # epoch, row numbers

    @property
    def epoch(self) -> float:
        return self.step / self.per_epoch

    def next_rows(self) -> list[int]:
        """Row numbers of the next global batch: a permutation of the split drawn from the seed and the epoch."""
        epoch, at = divmod(self.step, self.per_epoch)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(self.job.training.seed * 1_000_003 + epoch)
            self.order = (epoch, torch.randperm(self.splits.train.total, generator=generator).tolist())
        return self.order[1][at * self.batch : (at + 1) * self.batch]


def steps_of(training: TrainingSpec, per_epoch: int) -> int:
    """Optimizer steps of one job: `max_steps`, or the epochs' worth."""
    return training.max_steps if training.max_steps > 0 else max(1, math.ceil(training.num_train_epochs * per_epoch))
