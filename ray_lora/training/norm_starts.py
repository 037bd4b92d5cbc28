"""Batch norms of an adapter's own begin with the statistics of its training rows.

    starts = NormStarts(engine, group)
    starts.begin(job, task, splits, slot)      # the slot's norms stand where `lora.batch_norms` says

Statistics follow from base, rows and task alone, whatever adapter is trained on them: jobs that share these share them,
and any number of workers finds the same.
"""

from __future__ import annotations

from torch import Tensor

from ray_lora.adapters.peft_folder import PREFIX
from ray_lora.engine import AdapterEngine
from ray_lora.inference.windows import spread_windows
from ray_lora.recipe import TaskSpec
from ray_lora.tasks import Features, Task
from ray_lora.training.job import Job
from ray_lora.training.shards import Group, Splits

MOST_ROWS = 512  # that are measured; the first of the split where there are more
_ROWS = 16  # of a pass, which its own statistics normalise while it is measured


class NormStarts:
    """The statistics of one pack's data, on one worker of its group."""

    def __init__(self, engine: AdapterEngine, group: Group) -> None:
        self._engine, self._group = engine, group
        self._found: dict[tuple[str, TaskSpec], dict[str, Tensor]] = {}

    def begin(self, job: Job, task: Task, splits: Splits, slot: int) -> None:
        """Put the statistics of the job's training rows into its slot's norms, if it has any. Every worker calls it."""
        if job.lora.batch_norms == "base":
            return
        if (job.data, job.task) not in self._found:
            self._found[job.data, job.task] = self._measure(task, splits)
        named = {PREFIX + name: tensor for name, tensor in self._found[job.data, job.task].items()}
        self._engine.write(slot, self._engine.read(slot) | named)

    def _measure(self, task: Task, splits: Splits) -> dict[str, Tensor]:
        mine = {row: splits.train.rows[row] for row in splits.train.rows if row < MOST_ROWS}
        whole: dict[int, Features] = {}
        for part in self._group.gather(mine):
            whole |= part
        rows = [whole[row] for row in sorted(whole)]
        windows = spread_windows({0: task}, rows, [0] * len(rows)).features
        passes = (task.collate(windows[at : at + _ROWS]) for at in range(0, len(windows), _ROWS))
        return self._engine.measure_norms(passes)
