"""What a coordinator knows of each job, and what it tells packs. Plain data without torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from ray_lora.training.job import Job

Status = Literal["waiting", "running", "finished", "failed", "stopped"]


@dataclass
class Record:
    """Everything the coordinator knows of one job."""

    job: Job
    config: dict[str, Any]  # what distinguishes it: the recipe keys a search set
    status: Status = "waiting"
    pack: str | None = None
    slot: int | None = None
    step: int = 0
    total: int = 0
    epoch: float = 0.0
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    rows: int | None = None  # validation rows that the metrics were taken on, where the job says so
    saved_step: int = 0
    error: str | None = None
    notes: list[str] = field(default_factory=list)  # what its workers found that somebody should know
    started: float | None = None
    ended: float | None = None
    steps_at_start: int = 0
    inbox: deque[dict[str, Any]] = field(default_factory=deque)  # evaluations that nobody has fetched yet
    followed: bool = False  # somebody decides after each evaluation whether the job goes on
    held: bool = False  # it has reported and nobody has asked for more yet
    announced: bool = False  # who follows it has not come yet


@dataclass(frozen=True)
class Orders:
    """What a pack does next."""

    join: tuple[Job, ...] = ()
    leave: tuple[str, ...] = ()
    save: tuple[str, ...] = ()
    hold: tuple[str, ...] = ()  # members that make no step until somebody has decided on their last evaluation
    close: bool = False

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do but steps."""
        return not (self.join or self.leave or self.save or self.close)
