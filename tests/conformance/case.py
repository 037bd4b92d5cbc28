"""A task on a base, and what its checks need to know of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from ray_lora.bases.base import Base
from ray_lora.engine import AdapterEngine
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks import Features, Row, Task, build_task


@dataclass(frozen=True)
class Case:
    """One task to be checked.

    Attributes:
        spec: the task's options, complete.
        rows: training rows as a file would hold them; at least five, not all of one size and not all of one target.
        perfect: the best prediction that a row can have, as `task.score` takes it.
        open: the base, freshly loaded, in float64.
        plain: the plain class on that base's weights, as it is without this library, in float32.
        targets: layers of the base, by PEFT's `target_modules`.
        head: the plain class's own modules, PEFT's `modules_to_save`.
        close: how near the plain class's losses must be to ours; classes that compute in float32 whatever they are held
            in (rotary positions, root mean squares) round there.
        lora: of `LoraSpec` what adapters have beside; one of several goes without.
        wrong: what may stand in a row's place, column by column, and what is said of it (a regular expression).
    """

    spec: TaskSpec
    rows: Sequence[Row]
    perfect: Callable[[Row], Json]
    open: Callable[[], Base]
    plain: Callable[[], nn.Module]
    targets: Sequence[str]
    head: Sequence[str]
    wrong: Sequence[tuple[Mapping[str, Any], str]]
    close: float = 1e-9
    lora: Mapping[str, Any] = field(default_factory=dict)

    def engine(self, slots: int) -> AdapterEngine:
        """An engine that trains, on a base of its own."""
        return AdapterEngine(self.open(), slots=slots, max_rank=8, train=True)

    @cached_property
    def task(self) -> Task:
        return build_task(self.spec, self.open().processor)

    @cached_property
    def features(self) -> list[Features]:
        return self.task.encode(self.rows)
