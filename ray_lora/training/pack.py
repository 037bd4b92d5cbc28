"""A pack: the adapters that train together on one engine, one forward and one backward for all of them.

Jobs join and leave between steps. Each has its own rank, rate, schedule, seed, batch size, data and task; whatever its
neighbours do, its losses and its adapter are those it would have alone. The pack knows engine and tasks; it knows
nothing of Ray, trackers or where rows come from.

    pack = Pack(engine, {"tweets": splits})
    pack.join(job)
    while pack.members:
        for report in pack.step(): print(report)
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.augmentation.apply import check_transforms
from ray_lora.engine import AdapterEngine, SlotOptimizer, draw_of, draw_of_window
from ray_lora.errors import AdapterError, CapacityError, DataError, RecipeError
from ray_lora.inference.continued import check_continues
from ray_lora.inference.predict import forward, passes
from ray_lora.inference.windows import spread_windows
from ray_lora.recipe import TaskSpec
from ray_lora.tasks import Features, Task, build_task
from ray_lora.training import best
from ray_lora.training.augmented import augmented
from ray_lora.training.distillation import check_taught, distilled
from ray_lora.training.evaluation import evaluate
from ray_lora.training.head_start import HeadStarts
from ray_lora.training.head_teacher import HeadTeachers, teacher_of
from ray_lora.training.job import Job, Report
from ray_lora.training.member import Member, prefetch, steps_of
from ray_lora.training.norm_starts import NormStarts
from ray_lora.training.results import Results
from ray_lora.training.rungs import rungs_of
from ray_lora.training.samples import page, samples_of
from ray_lora.training.shards import ALONE, Group, Split, Splits
from ray_lora.training.state import has_state, load_state

__all__ = ["Group", "Pack", "Split", "Splits", "steps_of"]


class Pack:
    """Jobs that train together.

    Args:
        engine: built with `train=True`.
        data: splits by name, this worker's shard of each.
        group: the pack's other workers; every worker makes the same calls in the same order.
        output: where each job's folder is (`<output>/<job>/`), None to write nothing.
        max_rows: rows in one forward and backward; a step runs as many as it needs and the sums are the same.
    """

    def __init__(
        self,
        engine: AdapterEngine,
        data: MutableMapping[str, Splits],
        *,
        group: Group = ALONE,
        output: Path | None = None,
        max_rows: int = 64,
    ) -> None:
        self.engine, self.data, self.group, self.max_rows = engine, data, group, max_rows
        self.optimizer = SlotOptimizer(engine)
        self.members: dict[str, Member] = {}
        self.seconds: dict[str, float] = {}  # where the time of all steps went
        self.starts = HeadStarts(engine, group, max_rows)
        self.norms = NormStarts(engine, group)
        self.teachers = HeadTeachers(engine, group, max_rows)
        self._tasks: dict[TaskSpec, Task] = {}
        self._results = Results(engine, self.optimizer, output if group.rank == 0 else None)

    def task(self, spec: TaskSpec) -> Task:
        """The task of a spec, one object for equal specs."""
        if spec not in self._tasks:
            self._tasks[spec] = build_task(spec, self.engine.base.processor)
        return self._tasks[spec]

    # ---------------------------------------------------------------- joining and leaving

    def join(self, job: Job, state: Path | None = None, begin: Adapter | None = None) -> int:
        """Give a job a slot, fresh or as its checkpoint left it; returns the slot.

        Args:
            state: the folder of its checkpoint, where it may have one.
            begin: what it goes on from instead of a fresh adapter; of the job's own ranks, targets and task.

        Raises:
            RecipeError: its targets or ranks do not fit the base, or its augmentation does not fit its rows.
            DataError: its split has no rows, or it has a teacher and its rows have no soft targets.
            AdapterError: the checkpoint is of another adapter, or the base writes no answers, which the task's scores
                ask for.
            CapacityError: no slot is free, or the name is taken.
        """
        if job.name in self.members:
            raise CapacityError(f"job {job.name!r} is already in the pack; give each job its own name")
        splits, task = self.data[job.data], self.task(job.task)
        if splits.train.total == 0:
            raise DataError(f"job {job.name!r} has no training rows")
        check_transforms(task, job.augmentation)
        check_taught(job, task, splits)
        batch = job.training.per_device_train_batch_size * self.group.world
        per_epoch = math.ceil(splits.train.total / batch)
        total = steps_of(job.training, per_epoch)
        if begin is None:
            slot = self.engine.init(job.lora, task.head, job.training.seed, task.peft_type)
        else:
            slot = self.engine.load(begin)
            self.engine.drop(slot, job.lora.lora_dropout)
        self.optimizer.join(slot, job.training, total)
        rungs = rungs_of(total) if job.rungs else {}
        member = Member(job, slot, task, splits, total, per_epoch, batch, self._sizes(job, task), rungs)
        self.members[job.name] = member
        try:
            check_continues(self.engine, task)
            with self._timed("head_start"):
                self.teachers.fit(job, task, splits)
            if state is not None and has_state(state):
                member.step, member.losses, member.best = load_state(state, self.engine, self.optimizer, slot)
            elif begin is None:
                with self._timed("head_start"):
                    self.norms.begin(job, task, splits, slot)
                    self.starts.begin(job, task, splits, slot)
        except (AdapterError, DataError, RecipeError):
            self.leave(job.name)
            raise
        return slot

    def _sizes(self, job: Job, task: Task) -> Sequence[int]:
        """Sizes of all workers' training rows, in the rows' order, for a job whose order follows from them."""
        if job.training.train_sampling_strategy != "group_by_length":
            return ()
        split, whole = self.data[job.data].train, np.zeros(self.data[job.data].train.total, np.int32)
        for rows, sizes in self.group.gather((np.fromiter(split.rows, np.int64), split.sizes(task))):
            whole[rows] = sizes
        sizes_of_all: list[int] = whole.tolist()
        return sizes_of_all

    def stop(self, name: str) -> None:
        """Take a job out before its end: what its last evaluation found is written, and its slot is free."""
        self._results.write(self.members[name])
        self.leave(name)

    def leave(self, name: str) -> None:
        """Free a job's slot; nothing is written."""
        member = self.members.pop(name)
        self.optimizer.leave(member.slot)
        self.engine.evict(member.slot)

    def export(self, name: str, metrics: Mapping[str, float] | None = None) -> Adapter:
        """The job's adapter as it is now."""
        return self._results.adapter(self.members[name], metrics)

    def save(self, name: str) -> None:
        """Write a job's checkpoint; every worker calls it, the first one writes. One whose values are no longer finite
        keeps the checkpoint it has."""
        with self._timed("save"):
            self._results.checkpoint(self.members[name])

    # ---------------------------------------------------------------- one step for all

    def step(self, hold: Collection[str] = ()) -> list[Report]:
        """Train every member one optimizer step on its own next batch; evaluate and save those that are due.

        Args:
            hold: names of members that make no step this time.
        """
        members = [member for name, member in self.members.items() if name not in hold]
        rates = {member.slot: self.optimizer.rate(member.slot) for member in members}
        # a job whose last checkpoint was its last step has only its evaluation left
        training = [member for member in members if member.step < member.total]
        if training:
            self.train(training)
        failed = [member for member in training if not math.isfinite(member.losses[-1] + member.grad_norm)]
        with self._timed("evaluate"):
            due = [member for member in members if member not in failed and self._evaluates(member)]
            scores, lost = evaluate(self.engine, due, self.group, self.max_rows)
            for member in due:
                best.see(self.engine, member, scores.get(member.job.name))
            if changed := best.back(self.engine, [member for member in due if member not in lost]):
                again, more = evaluate(self.engine, changed, self.group, self.max_rows)
                scores, lost = scores | again, lost + more
        failed += lost
        with self._timed("samples"):
            self._sample([member for member in members if member not in failed and member.step >= member.total])
        reports = []
        for member in members:
            if member in failed:
                reports.append(self._fail(member))
            else:
                reports += self._report(member, rates[member.slot], scores.get(member.job.name))
        return reports

    def train(self, members: Sequence[Member]) -> None:
        """One optimizer step of members that have one left, each on its own next batch; nothing is evaluated."""
        sums, counts = self._gradients(members)
        with self._timed("reduce"):
            self._reduce(sums, counts, members)
        with self._timed("optimizer"):
            terms, totals = counts.tolist(), sums.tolist()
            norms = self.optimizer.step({member.slot: terms[member.slot] for member in members})
        for member in members:
            member.losses.append(totals[member.slot] / terms[member.slot])
            member.grad_norm = norms[member.slot]
            member.step += 1

    def _gradients(self, members: Sequence[Member]) -> tuple[Tensor, Tensor]:
        """Add every member's gradients to the engine's buffers; sums of losses and counts of terms, [slots + 1]."""
        features: list[Features] = []
        slots: list[int] = []
        draws: list[int] = []
        owners: list[tuple[Member, int]] = []
        for member in members:
            member.last_rows = member.rows_of(member.step)
            mine = [row for row in member.last_rows if row in member.splits.train.rows]
            features += [member.splits.train.rows[row] for row in mine]
            slots += [member.slot] * len(mine)
            draws += [draw_of(member.job.training.seed, member.step, row) for row in mine]
            owners += [(member, row) for row in mine]
        prefetch(members)
        tasks = {member.slot: member.task for member in members}
        teaching = {member.slot: teacher_of(member.job) for member in members}
        spread = spread_windows(tasks, features, slots)
        draws = [draw_of_window(draws[row], number) for row, number in zip(spread.rows, spread.windows, strict=True)]
        with self._timed("augment"):
            features, slots = augmented(spread, owners), list(spread.slots)
        with self._timed("head_teacher"):
            features = self.teachers.taught(features, [owners[row][0] for row in spread.rows])
        device = self.engine.base.device
        sums = torch.zeros(self.engine.slots + 1, dtype=torch.float64, device=device)
        counts = torch.zeros_like(sums)
        for chunk in passes(self.engine, tasks, features, slots, self.max_rows):
            total: Tensor | None = None
            with self._timed("forward"):
                for task, rows, outputs in forward(self.engine, tasks, features, slots, chunk, draws):
                    given = [features[row] for row in rows]
                    losses, terms = task.loss(outputs, given)
                    losses = distilled(task, losses, outputs, given, [teaching[slots[row]] for row in rows])
                    index = torch.tensor([slots[row] for row in rows], device=device)
                    sums.index_add_(0, index, losses.detach().double())
                    counts.index_add_(0, index, terms.double())
                    total = losses.sum() if total is None else total + losses.sum()
            assert total is not None
            with self._timed("backward"):
                total.backward()
        return sums, counts

    def _reduce(self, sums: Tensor, counts: Tensor, members: Sequence[Member]) -> None:
        """Sum losses, counts and the members' gradients over the pack's workers."""
        if self.group.world == 1:
            return
        stats = torch.stack([sums, counts])
        self.group.all_reduce(stats)
        sums.copy_(stats[0])
        counts.copy_(stats[1])
        top = max(member.slot for member in members) + 1
        for grad in [self.engine.grad, *self.engine.head_grad.values()]:
            self.group.all_reduce(grad[:top])

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    # ---------------------------------------------------------------- after a step

    def _sample(self, members: Sequence[Member]) -> None:
        """Have those that are done write some texts; the first worker does."""
        if members and self._results.output is not None:
            for name, samples in samples_of(self.engine, members).items():
                self.members[name].samples = page(samples)

    def _evaluates(self, member: Member) -> bool:
        if member.job.rungs:
            return member.step in member.rungs or member.step >= member.total
        every = member.job.training.eval_steps or member.per_epoch
        return member.step % every == 0 or member.step >= member.total

    def _report(self, member: Member, rate: float, metrics: dict[str, float] | None) -> list[Report]:
        done = member.step >= member.total
        saves = done or metrics is not None or member.step % member.job.training.save_steps == 0
        logs = done or metrics is not None or member.step % member.job.training.logging_steps == 0
        if not (saves or logs):
            return []
        loss = sum(member.losses) / len(member.losses) if logs and member.losses else None
        shown = Report(
            member.job.name,
            member.step,
            member.total,
            member.epoch,
            loss,
            rate,
            member.grad_norm,
            metrics,
            eighths=member.eighths if member.job.rungs and metrics is not None else None,
            rows=member.validation_rows if member.job.rungs and metrics is not None else None,
            saved=saves,
            done=done,
        )
        if logs:
            member.losses.clear()
        if done or metrics is not None:
            self._results.evaluated(member, metrics)
        if logs:
            self._results.note(member, shown)
        if saves:
            self.save(member.job.name)
        if done:
            self.stop(member.job.name)
        return [shown]

    def _fail(self, member: Member) -> Report:
        """Take a job out that cannot go on; what its last evaluation found and its last checkpoint stay in its
        folder."""
        self.stop(member.job.name)
        known = f"loss {member.losses[-1]:.4g}, " if member.losses else ""
        what = f"{known}gradient norm {member.grad_norm:.4g}"
        return Report(
            member.job.name,
            member.step,
            member.total,
            member.epoch,
            error=f"diverged at step {member.step} ({what}); lower training.learning_rate",
        )
