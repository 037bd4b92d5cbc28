"""What the heads of a pack's jobs begin from: as every fresh head does, or fitted on the frozen base.

    starts = HeadStarts(engine, group)
    starts.begin(job, task, splits, slot)      # the slot's head stands where `training.head_start` says

A fit follows from base, rows and task alone: jobs that share them share it, and it is made once, whoever joins when.
It knows what is fitted and chosen; how is in `inference/head_alone.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ray_lora.adapters.peft_folder import PREFIX
from ray_lora.engine import AdapterEngine, LoneHead, last_layer
from ray_lora.inference.frozen import Kept, keep
from ray_lora.inference.head_alone import fit_best
from ray_lora.inference.windows import spread_windows
from ray_lora.recipe import TaskSpec
from ray_lora.tasks import Features, Task, task_of
from ray_lora.training.job import Job
from ray_lora.training.shards import Group, Split, Splits

# A fitted head is sure of the rows it was fitted on, and so teaches the layers below little. A tenth of its last
# layer points the same way and leaves them all of the loss. One of large weights reads what the base hardly says: the
# least that changes below it changes its answers, so that training is thrown out of its way.
SHARE = 0.1
GAIN = 0.12  # of the loss of a head that tells no rows apart; one that gains less points nowhere
STEEP = 1.0  # root mean square of the last layer's weights where it begins; MiniLM's tasks have 0.01 to 0.12
_MOST = 2**26  # bytes a worker keeps of the base's outputs; a sample of the rows where there are more
MOST_ROWS = 8192  # of them, so that a job of millions of rows begins as soon
_HELD_OUT = 5  # of so many training rows one chooses the strength where there are no validation rows


class HeadStarts:
    """The starts of one pack, on one worker of its group."""

    def __init__(self, engine: AdapterEngine, group: Group, max_rows: int = 64) -> None:
        self._engine, self._group, self._max_rows = engine, group, max_rows
        self._fitted: dict[tuple[str, TaskSpec], tuple[dict[str, Tensor], bool]] = {}

    def begin(self, job: Job, task: Task, splits: Splits, slot: int) -> None:
        """Put the start that the job asks for into its slot, which holds a fresh adapter. Every worker calls it."""
        if not fits(job, splits):
            return
        if (job.data, job.task) not in self._fitted:
            self._fitted[job.data, job.task] = self._fit(task, splits)
        tensors, better = self._fitted[job.data, job.task]
        if better or job.training.head_start == "fitted":
            named = {PREFIX + name: tensor for name, tensor in tensors.items()}
            self._engine.write(slot, self._engine.read(slot) | named)

    def _fit(self, task: Task, splits: Splits) -> tuple[dict[str, Tensor], bool]:
        """The fitted head, its last layer at `SHARE`, or at less where it would be steeper than `STEEP`; and whether
        `auto` begins with it: it is not so steep, takes at least `GAIN` of the validation rows' loss away, and does
        better than where it came from, which may be the base's own head."""
        head = LoneHead(self._engine.base, task.head)
        parted = splits.validation is None and splits.train.total >= 2 * _HELD_OUT
        train = self._keep(task, splits.train, holds=False if parted else None)
        validation = self._keep(task, splits.validation or splits.train, holds=True if parted else None)
        found = fit_best(head, task, train, validation, self._group.all_reduce)
        fitted = [one for one in found if math.isfinite(one.strength)] or found
        best, blind = fitted[0], max(fitted, key=lambda one: one.strength)
        last = last_layer(self._engine, task.head)
        steep = max((_spread(best.tensors[name]) for name in last if best.tensors[name].dim() > 1), default=0.0)
        share = min(SHARE, STEEP / max(steep, STEEP))
        tensors = {name: tensor * share if name in last else tensor for name, tensor in best.tensors.items()}
        return tensors, share == SHARE and best is found[0] and best.loss < (1 - GAIN) * blind.loss

    def _keep(self, task: Task, split: Split, holds: bool | None = None) -> list[Kept]:
        """What the base gives for this worker's rows, in an order that does not follow the file's.

        Args:
            holds: of the rows only those that choose (True) or only the others; None for all.
        """
        order = torch.randperm(split.total, generator=torch.Generator().manual_seed(0))
        if holds is not None:
            order = order[(torch.arange(split.total) % _HELD_OUT == 0) == holds]
        rows: Sequence[Features] = [split.rows[row] for row in order[:MOST_ROWS].tolist() if row in split.rows]
        windows = spread_windows({0: task}, rows, [0] * len(rows)).features
        return keep(self._engine, task, windows, max_rows=self._max_rows, most=_MOST)


def _spread(tensor: Tensor) -> float:
    """Root mean square."""
    return float(tensor.double().square().mean().sqrt())


def fits(job: Job, splits: Splits) -> bool:
    """Whether a job's head is fitted before it trains: on the base as it is, which one with norms of its own never
    reads."""
    if job.lora.batch_norms == "own":
        return False
    start = job.training.head_start
    return start == "fitted" or (start == "auto" and splits.validation is not None and _fittable(job))


def _fittable(job: Job) -> bool:
    """Whether `auto` tries to fit heads of the job's task: its `fits_head`, which is true where it does not say."""
    told: bool = getattr(task_of(job.task), "fits_head", True)
    return told


def say_start(job: Job, splits: Splits) -> list[str]:
    """What somebody should know of how a job's head begins."""
    own = job.lora.batch_norms == "own"
    if job.training.head_start != "auto" or splits.validation is not None or own or not _fittable(job):
        return []
    return [f"{job.data} has no validation rows, which training.head_start: auto asks; its heads are not fitted before"]
