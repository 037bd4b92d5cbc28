"""What an adapter knows about itself beyond PEFT's config: the file `ray_lora.json` beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_serializer, field_validator, model_validator

from ray_lora.bounds import Name, Place, check_tree
from ray_lora.recipe import BaseSpec, Json, QuantisedDtype, Spec, TaskSpec
from ray_lora.task_spec import Attention

CARD = "ray_lora.json"
_MOST_METRICS = 4096
_MOST_PARENTS = 1024

Method = Literal[
    "cat", "svd", "linear", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
]  # fmt: skip
Mark = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]  # of a content or of weights: a hash, and what was made of it


class Combination(Spec):
    """How adapters are combined. `combination` checks it.

    Attributes:
        weights: of each parent. rank: of the methods that end in `svd`; None: each layer's largest.
        density: the share of values that are kept; None of methods that keep all. seed: of values drawn at random.
    """

    method: Method
    weights: tuple[float, ...] = Field(max_length=_MOST_PARENTS)
    rank: int | None = Field(default=None, ge=1)
    density: float | None = None
    seed: int = 0


class Parent(Spec):
    """One of the adapters that another was merged from."""

    ref: Name
    sha256: Mark


class Merged(Spec):
    """What an adapter was merged from, and how."""

    parents: tuple[Parent, ...] = Field(max_length=_MOST_PARENTS)
    how: Combination


class Card(Spec):
    """What an adapter knows about itself beyond PEFT's config. What is too long to be meant, or holds control
    characters, is an error."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")  # a metric may be no number

    task: TaskSpec | None = None
    base: Place | None = None
    base_fingerprint: Mark | None = None
    base_dtype: QuantisedDtype | None = Field(
        default=None, exclude_if=lambda told: told is None
    )  # "int8" or "nf4": of its weights
    base_revision: Name | None = None  # of a hub id, where PEFT noted one
    architecture: Name | None = None  # the plain class whose head this adapter carries
    attention: Attention | None = Field(default=None, exclude_if=lambda told: told is None)  # as `HeadSpec` has it
    metrics: dict[Name, float] = Field(default_factory=dict, max_length=_MOST_METRICS)
    # by which the head's outputs were divided so that scores are calibrated; None: they were not
    temperature: float | None = Field(default=None, gt=0, exclude_if=lambda value: value is None)
    # what it learnt by: {"training": {...}, "augmentation": [...], "distillation": {"teacher": "name@3", "sha256": ...,
    # "temperature": ..., "weight": ...}, "data": {"train.rows": ..., "train.sha256": ...}}
    recipe: dict[str, Json] | None = None
    merged: Merged | None = Field(default=None, exclude_if=lambda told: told is None)
    # layers whose pair PEFT does not compute, and why: plain PEFT refuses the folder
    beyond_peft: tuple[Annotated[str, Field(max_length=2048)], ...] = Field(
        default=(), exclude_if=lambda told: not told
    )
    sha256: Mark | None = None

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

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, told: Any) -> Any:
        return check_tree(told) if isinstance(told, Mapping) else told

    @field_validator("task", mode="before")
    @classmethod
    def _recall(cls, task: Any) -> Any:
        return TaskSpec.recall(task) if isinstance(task, Mapping) else task

    @field_serializer("task")
    def _record(self, task: TaskSpec | None) -> dict[str, Json] | None:
        return task.recorded() if task is not None else None
