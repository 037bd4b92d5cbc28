"""What is written of a pack's jobs: adapters as their evaluations found them, checkpoints, histories.

    results = Results(engine, optimizer, output)
    results.evaluated(member, metrics)        # the adapter is remembered as it is now, calibrated and with its card
    results.checkpoint(member); results.note(member, report)
    results.write(member)                     # `<output>/<job>/adapter`, and the figures beside it

It knows members and folders, not when they are evaluated. Of a pack's workers the first one has an output.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.engine import AdapterEngine, HeadSpec, SlotOptimizer, last_layer
from ray_lora.recipe import Json
from ray_lora.training.calibration import calibrated
from ray_lora.training.distillation import taught_by
from ray_lora.training.figures import FIGURES, write_all
from ray_lora.training.history import write_history
from ray_lora.training.job import Report
from ray_lora.training.member import Member
from ray_lora.training.settling import settled
from ray_lora.training.state import save_state


class Results:
    """Where the results of one pack's jobs go.

    Args:
        output: where each job's folder is; None to write nothing.
    """

    def __init__(self, engine: AdapterEngine, optimizer: SlotOptimizer, output: Path | None) -> None:
        self._engine, self._optimizer, self.output = engine, optimizer, output
        self._last_layers: dict[HeadSpec, tuple[str, ...]] = {}

    def adapter(self, member: Member, metrics: Mapping[str, float] | None = None) -> Adapter:
        """A job's adapter as it is now."""
        job, learnt = member.job, member.splits.identity
        recipe: dict[str, Json] = {"training": job.training.model_dump(mode="json")}
        if job.augmentation:
            recipe["augmentation"] = [transform.model_dump(mode="json") for transform in job.augmentation]
        recipe |= taught_by(job, learnt)
        if job.origin is not None:
            recipe["origin"] = dict(job.origin)
        if learnt:  # not where the rows lie, which is nobody's business whom the adapter is given to
            recipe["data"] = {key: value for key, value in learnt.items() if key.endswith((".rows", ".sha256"))}
        if metrics and member.best is not None and member.step >= member.total:
            recipe["evaluated"] = {"step": member.best.step}
        if metrics and member.step in member.rungs:
            recipe["evaluated"] = {"eighths": member.eighths, "validation_rows": member.validation_rows}
        return self._engine.export(member.slot, Card(task=job.task, metrics=dict(metrics or {}), recipe=recipe))

    def evaluated(self, member: Member, metrics: Mapping[str, float] | None) -> None:
        """Remember the adapter as its evaluation found it."""
        if self.output is not None:
            exported = self._calibrated(member, self.adapter(member, metrics))
            member.evaluated = settled(exported, member.task, member.answered)

    def note(self, member: Member, report: Report) -> None:
        """Append what was logged to the job's history."""
        if self.output is not None:
            write_history(self.output / member.job.name, member.step, report.logged, report.rung)

    def checkpoint(self, member: Member) -> None:
        """Write a job's checkpoint. One whose values are no longer finite keeps the checkpoint it has."""
        if self.output is None:
            return
        if all(bool(value.isfinite().all()) for value in self._engine.read(member.slot).values()):
            folder, job = self.output / member.job.name / "state", member
            save_state(folder, self._engine, self._optimizer, job.slot, job.step, job.losses, job.best)

    def write(self, member: Member) -> None:
        """Write the adapter that the last evaluation found, replacing what a killed run left."""
        if self.output is None or member.evaluated is None:
            return
        folder, fresh = (self.output / member.job.name / name for name in ("adapter", "adapter.tmp"))
        shutil.rmtree(fresh, ignore_errors=True)
        member.evaluated.save(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        write_all(member, self.output / member.job.name / FIGURES)

    def _calibrated(self, member: Member, adapter: Adapter) -> Adapter:
        head = member.task.head
        if member.temperature is not None and head not in self._last_layers:
            self._last_layers[head] = last_layer(self._engine, head)
        return calibrated(adapter, member.temperature, self._last_layers.get(head, ()))
