"""One job while it is in a pack: where it stands, and which rows come next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.recipe import Json, TrainingSpec
from ray_lora.tasks import Features, Task
from ray_lora.training.job import Job
from ray_lora.training.rungs import WHOLE, rows_at
from ray_lora.training.shards import Split, Splits

Order = NDArray[np.int32]  # row numbers of one epoch, [rows]
_ORDERS: WeakValueDictionary[tuple[int, int, int], Order] = WeakValueDictionary()  # shared by jobs of one seed


@dataclass(frozen=True)
class Best:
    """The best of a job's evaluations: its score, its step, and what the slot held then, by PEFT's keys."""

    score: float
    step: int
    values: Mapping[str, Tensor]


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
    rungs: Mapping[int, int] = field(default_factory=dict)  # of a job that has them: steps, and which eighth each is
    step: int = 0
    losses: list[float] = field(default_factory=list)
    grad_norm: float = 0.0
    order: tuple[int, Order] = (-1, np.zeros(0, np.int32))  # epoch, row numbers
    last_rows: list[int] = field(default_factory=list)  # of the last step's global batch
    best: Best | None = None  # of its evaluations, where it ends with that
    evaluated: Adapter | None = None  # as its last evaluation in this pack found it
    temperature: float | None = None  # that its validation rows asked for then
    answered: tuple[list[Json], list[Features]] | None = None  # its answers then, and the validation rows
    samples: str = ""  # a page of what it writes at its end; empty where it writes nothing

    @property
    def epoch(self) -> float:
        return self.step / self.per_epoch

    @property
    def eighths(self) -> int:
        """How much of its steps a job with rungs has done, at an evaluation."""
        return self.rungs.get(self.step, WHOLE)

    @property
    def validation_rows(self) -> int:
        """On how many rows, of all workers, it is evaluated at this step; 0 without validation rows."""
        total = self.splits.validation.total if self.splits.validation is not None else 0
        return rows_at(self.eighths, total) if self.step in self.rungs else total

    def rows_of(self, step: int) -> list[int]:
        """Row numbers of a step's global batch, from its epoch's order."""
        epoch, at = divmod(step, self.per_epoch)
        if self.order[0] != epoch:
            self.order = (epoch, self._draw(epoch))
        rows: list[int] = self.order[1][at * self.batch : (at + 1) * self.batch].tolist()
        return rows

    def _draw(self, epoch: int) -> Order:
        """An order of the whole split that follows from the seed and the epoch alone, as HF's samplers draw it."""
        training, total = self.job.training, self.splits.train.total
        if training.train_sampling_strategy == "sequential":
            return np.arange(total, dtype=np.int32)
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
        if training.train_sampling_strategy == "group_by_length":
            from transformers.trainer_pt_utils import get_length_grouped_indices

            return np.array(get_length_grouped_indices(self.sizes, self.batch, generator=generator), np.int32)
        key = (total, training.seed, epoch)
        drawn = _ORDERS.get(key)
        if drawn is None:
            drawn = _ORDERS[key] = torch.randperm(total, generator=generator).numpy().astype(np.int32)
        return drawn


def steps_of(training: TrainingSpec, per_epoch: int) -> int:
    """Optimizer steps of one job: `max_steps`, or the epochs' worth."""
    return training.max_steps if training.max_steps > 0 else max(1, math.ceil(training.num_train_epochs * per_epoch))


def prefetch(members: Sequence[Member]) -> None:
    """Begin to read the next step's rows while this one's are computed."""
    ahead: dict[int, tuple[Split, list[int]]] = {}
    for member in members:
        if member.step + 1 < member.total:
            split = member.splits.train
            ahead.setdefault(id(split), (split, []))[1].extend(member.rows_of(member.step + 1))
    for split, rows in ahead.values():
        split.prefetch(rows)
