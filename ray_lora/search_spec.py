"""What a search tries and what it is for: the recipe's `search`. It knows no searchers, only how they are named.

SearchSpec(space={"lora.r": {"grid_search": [2, 8]}}, metric="accuracy")
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ray_lora.task_spec import Json, Spec


class ObjectiveSpec(Spec):
    """One of several metrics that a search is for."""

    name: str
    mode: Literal["max", "min"] | None = None  # null: as the metric itself has it


class SearchSpec(Spec):
    """What Ray Tune tries. `space` maps recipe keys to `{sampler: arguments}`; null is a default space."""

    space: dict[str, dict[str, Json]] | None = None
    num_samples: int = Field(default=1, ge=1)
    metric: str | None = None  # null: the task's own
    mode: Literal["max", "min"] | None = None
    # several in place of one: the first decides, the others choose among those that are as good
    metrics: tuple[ObjectiveSpec, ...] = Field(default=(), exclude_if=lambda told: not told)
    # the column of the validation rows whose groups are to be served alike
    groups: str | None = Field(default=None, exclude_if=lambda told: told is None)
    searcher: Literal["basic", "optuna"] = "basic"
    scheduler: Literal["auto", "fifo", "asha", "median"] = "auto"  # auto: asha where there is early stopping, else fifo
    # evaluations at 1/8, 1/4 and 1/2 of each trial's steps; auto: where there is enough to stop and to stop by
    early_stopping: Literal["auto", "rungs", "none"] = "auto"
    try_default: bool = True  # the recipe's own values are a trial too
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    time_budget_s: float | None = Field(default=None, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _one_or_several(self) -> SearchSpec:
        if self.metrics and (self.metric is not None or self.mode is not None):
            raise ValueError("metrics takes the place of metric and mode; give one or the other")
        names = [each.name for each in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError(f"metrics names one twice: {', '.join(names)}")
        return self
