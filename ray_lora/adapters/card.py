"""What an adapter knows about itself beyond PEFT's config: the file `ray_lora.json` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, field_serializer, field_validator

from ray_lora.adapters.merge import Combination
from ray_lora.recipe import BaseSpec, Json, QuantisedDtype, Spec, TaskSpec
from ray_lora.task_spec import Attention

CARD = "ray_lora.json"


class Parent(Spec):
    """One of the adapters that another was merged from."""

    ref: str
    sha256: str


class Merged(Spec):
    """What an adapter was merged from, and how."""

    parents: tuple[Parent, ...]
    how: Combination


class Card(Spec):
    """What an adapter knows about itself beyond PEFT's config."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")  # a metric may be no number

    task: TaskSpec | None = None
    base: str | None = None
    base_fingerprint: str | None = None
    base_dtype: QuantisedDtype | None = Field(
        default=None, exclude_if=lambda told: told is None
    )  # "int8" or "nf4": of its weights
    base_revision: str | None = None  # of a hub id, where PEFT noted one
    architecture: str | None = None  # the plain class whose head this adapter carries
    attention: Attention | None = Field(default=None, exclude_if=lambda told: told is None)  # as `HeadSpec` has it
    metrics: dict[str, float] = Field(default_factory=dict)
    # by which the head's outputs were divided so that scores are calibrated; None: they were not
    temperature: float | None = Field(default=None, gt=0, exclude_if=lambda value: value is None)
    # what it learnt by: {"training": {...}, "augmentation": [...], "distillation": {"teacher": "name@3", "sha256": ...,
    # "temperature": ..., "weight": ...}, "data": {"train.rows": ..., "train.sha256": ...}}
    recipe: dict[str, Json] | None = None
    merged: Merged | None = Field(default=None, exclude_if=lambda told: told is None)
    # layers whose pair PEFT does not compute, and why: plain PEFT refuses the folder
    beyond_peft: tuple[str, ...] = Field(default=(), exclude_if=lambda told: not told)
    sha256: str | None = None

    @property
    def reads(self) -> Attention | None:
        """What a token sees of its row, as the adapter was trained; None: what the base's class lets it see."""
        return self.attention or (self.task.reads if self.task is not None else None)

    def spec_of(self, model: str, dtype: str = "auto") -> BaseSpec:
        """The base that it answers on: `model`, in `dtype`, else in the few bits that it was trained on.

        Args:
            dtype: as `base.dtype`; "auto" leaves it to the card.
        """
        return BaseSpec.model_validate(
            {"model": model, "dtype": dtype if dtype != "auto" else self.base_dtype or dtype}
        )

    @field_validator("task", mode="before")
    @classmethod
    def _recall(cls, task: Any) -> Any:
        return TaskSpec.recall(task) if isinstance(task, Mapping) else task

    @field_serializer("task")
    def _record(self, task: TaskSpec | None) -> dict[str, Json] | None:
        return task.recorded() if task is not None else None
