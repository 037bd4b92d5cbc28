"""A section of the recipe, and the one that is each task's own: which options stand below `task` is said by its type.

    TaskSpec.model_validate({"type": "text-classification", "max_length": 64})    # a TextClassificationSpec

It knows where tasks are found (`tasks/table.py`), not what they do.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

Json = Any  # what json.dumps takes
Attention = Literal["causal", "bidirectional"]  # what a token sees of its row: what lies before it, or all


class Spec(BaseModel):
    """A frozen section of the recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class TaskSpec(Spec):
    """What is predicted: the base of each task's own options.

    It stands for all of them in annotations: `TaskSpec.model_validate({"type": ..., ...})` gives the options of the
    task that `type` names, checked by that task. A task's file has them by name: `TextClassificationSpec(labels=...)`.
    """

    type: str

    @abstractmethod
    def describe(self) -> dict[str, Json]:
        """What lists of adapters show of it beside its type: `{"labels": ["negative", "positive"]}`."""

    @property
    def outputs(self) -> int | None:
        """How many outputs the head must have; None where these options do not say."""
        return None

    @property
    def reads(self) -> Attention | None:
        """What a token sees of its row; None: what the base's class lets it see."""
        return None

    def recorded(self) -> dict[str, Json]:
        """What a card keeps of it, which an adapter's content hash covers."""
        return self.model_dump(mode="json")

    @classmethod
    def recall(cls, told: Mapping[str, Json]) -> TaskSpec:
        """The options that a card keeps, those of earlier versions too.

        Raises:
            ValidationError: they are not a task's; RecipeError: there is no such task, or it is not allowed.
        """
        return options_of(task_type_of(told)).recall(told) if cls is TaskSpec else cls.model_validate(told)

    @model_validator(mode="wrap")
    @classmethod
    def _by_type(cls, value: Any, handler: ModelWrapValidatorHandler[TaskSpec]) -> TaskSpec:
        if cls is not TaskSpec or isinstance(value, TaskSpec) or not isinstance(value, Mapping):
            return handler(value)
        named = _TaskType.model_validate({"type": value["type"]} if "type" in value else {})
        return options_of(named.type).model_validate(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        if cls is not TaskSpec:
            return handler(core_schema)
        from ray_lora.tasks.table import DEFAULT, TASKS

        known = []
        for name in TASKS:
            schema = handler.resolve_ref_schema(handler(options_of(name).__pydantic_core_schema__))
            known.append(schema if name == DEFAULT else schema | {"required": ["type"]})
        own = {"type": {"type": "string", "pattern": ":", "description": "package.module:Class, allowed by the user"}}
        return {"oneOf": [*known, {"type": "object", "properties": own, "required": ["type"]}]}


class _TaskType(BaseModel):
    """The type that a mapping of a task's options names, read alone, so that an error is one of `task.type`."""

    type: str = Field(default_factory=lambda: default_task())

    @field_validator("type")
    @classmethod
    def _there(cls, given: str) -> str:
        options_of(given)
        return given


def default_task() -> str:
    from ray_lora.tasks.table import DEFAULT

    return DEFAULT


def task_type_of(told: Any) -> str:
    """The type that a mapping of a task's options names, whether there is such a task or not."""
    return str(told.get("type", default_task())) if isinstance(told, Mapping) else default_task()


def options_of(task_type: str) -> type[TaskSpec]:
    """The options of a task; RecipeError when there is no such task."""
    from ray_lora.tasks.table import task_class

    return cast("type[TaskSpec]", task_class(task_type).spec_type)
