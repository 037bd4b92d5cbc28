"""What travels between a search, its coordinator and its packs: a job to be trained, and what it reports.

Plain data without torch, so that the processes which only pass it on start quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_lora.distillation_spec import NO_TEACHER, DistillationSpec
from ray_lora.recipe import Json, LoraSpec, TaskSpec, TrainingSpec, TransformSpec

SIZES = ("parameters", "adapter_bytes")  # of one adapter, head included; the fewer the better
WORST_GROUP, GAP = "_worst_group", "_gap"  # endings of a metric's name: of the group where it is worst; to the best


@dataclass(frozen=True)
class Job:
    """One adapter to be trained. `task` is completed by its training rows; `data` names the pack's splits. With `rungs`
    it is evaluated after an eighth, a quarter and half of its steps (`training.rungs`), and not by `eval_steps`.
    `origin` says from whose checkpoint it goes on, where that is another job's; its adapter's card keeps it.
    With `measures` its evaluations say its sizes too, with `fair`, a metric, how evenly it serves groups of rows
    (`training.measures`)."""

    name: str
    data: str
    task: TaskSpec
    lora: LoraSpec
    training: TrainingSpec
    augmentation: tuple[TransformSpec, ...] = ()
    distillation: DistillationSpec = NO_TEACHER
    rungs: bool = False
    origin: Mapping[str, Json] | None = None
    measures: bool = False
    fair: str | None = None


@dataclass(frozen=True)
class Report:
    """What one job has to say after a step.

    Attributes:
        step, total: optimizer steps taken, and to be taken.
        loss: mean training loss since the last report; None when nothing was logged.
        metrics: scores on the validation rows; None when this step had no evaluation.
        eighths, rows: of a job with rungs: how far it is, and how many validation rows its metrics were taken on.
        saved: a checkpoint was written at this step.
        error: why the job failed; it has left the pack.
    """

    job: str
    step: int
    total: int
    epoch: float
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    metrics: dict[str, float] | None = None
    eighths: int | None = None
    rows: int | None = None
    saved: bool = False
    done: bool = False
    error: str | None = None

    @property
    def logged(self) -> dict[str, float]:
        """Everything that is to be logged at this step."""
        values = {"loss": self.loss, "learning_rate": self.learning_rate, "grad_norm": self.grad_norm}
        known = {name: value for name, value in values.items() if value is not None} if self.loss is not None else {}
        return known | (self.metrics or {}) | ({"validation_rows": self.rows} if self.rows is not None else {})

    @property
    def rung(self) -> dict[str, float]:
        """Where an evaluation of a job with rungs stands; empty of another."""
        if self.eighths is None or self.rows is None:
            return {}
        return {"eighths": self.eighths, "validation_rows": self.rows}
