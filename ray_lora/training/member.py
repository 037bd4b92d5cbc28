"""One job while it is in a pack: where it stands, and which rows come next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ray_lora.adapters.adapter import Adapter
from ray_lora.recipe import Json, TrainingSpec
from ray_lora.tasks import Features, Task
from ray_lora.training.job import Job
from ray_lora.training.shards import Splits


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
    sizes: Sequence[int] = ()  # of all training rows, where the order follows from them
    step: int = 0
    losses: list[float] = field(default_factory=list)
    grad_norm: float = 0.0
    order: tuple[int, list[int]] = (-1, [])  # epoch, row numbers
    last_rows: list[int] = field(default_factory=list)  # of the last step's global batch
    evaluated: Adapter | None = None  # as its last evaluation in this pack found it
    temperature: float | None = None  # that its validation rows asked for then
    answered: tuple[list[Json], list[Features]] | None = None  # its answers then, and the validation rows

    @property
    def epoch(self) -> float:
        return self.step / self.per_epoch

    def next_rows(self) -> list[int]:
        """Row numbers of the next global batch, from the epoch's order."""
        epoch, at = divmod(self.step, self.per_epoch)
        if self.order[0] != epoch:
            self.order = (epoch, self._draw(epoch))
        return self.order[1][at * self.batch : (at + 1) * self.batch]

    def _draw(self, epoch: int) -> list[int]:
        """An order of the whole split that follows from the seed and the epoch alone, as HF's samplers draw it."""
        training = self.job.training
        if training.train_sampling_strategy == "sequential":
            return list(range(self.splits.train.total))
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
        if training.train_sampling_strategy == "group_by_length":
            from transformers.trainer_pt_utils import get_length_grouped_indices

            order: list[int] = get_length_grouped_indices(self.sizes, self.batch, generator=generator)
            return order
        return torch.randperm(self.splits.train.total, generator=generator).tolist()


def steps_of(training: TrainingSpec, per_epoch: int) -> int:
    """Optimizer steps of one job: `max_steps`, or the epochs' worth."""
    return training.max_steps if training.max_steps > 0 else max(1, math.ceil(training.num_train_epochs * per_epoch))
