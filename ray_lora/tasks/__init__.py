"""Tasks: what is predicted and how it is scored. They know rows and losses, not slots.

    task = build_task(TextClassificationSpec(labels=("negative", "positive")), base.processor)

A new task is one file here and one line in `TASKS`, or a class in a package of your own (docs/add-a-task.md);
`tests/conformance/` says whether it keeps the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks import table
from ray_lora.tasks.classification import ClassificationSpec
from ray_lora.tasks.labels import plain_labels
from ray_lora.tasks.rows import row_of
from ray_lora.tasks.table import TASKS
from ray_lora.tasks.task import Column, Features, Row, Task

if TYPE_CHECKING:
    from ray_lora.bases.plain import HeadSpec


def task_class(name: str) -> type[Task]:
    """The class that implements a task; RecipeError when there is none, or it is not allowed."""
    found: type[Task] = table.task_class(name)
    return found


def task_of(spec: TaskSpec) -> type[Task]:
    """The class that does what these options ask for: the one of their type, or what its `of` chooses of several."""
    found = task_class(spec.type)
    choose = getattr(found, "of", None)
    chosen: type[Task] = found if choose is None else choose(spec)
    return chosen


def build_task(spec: TaskSpec, processor: Any) -> Task:
    """The task of a spec on a base with this processor, by the class that its `on` chooses, where it has one;
    RecipeError when the two do not fit."""
    kind = task_of(spec)
    on = getattr(kind, "on", None)
    chosen: type[Task] = kind if on is None else on(processor)
    return chosen(spec, processor)


def scoring_of(task: Task) -> Mapping[str, Json]:
    """The parameters of answers that `task.score` takes: its `scoring`, or none."""
    told: Mapping[str, Json] = getattr(task, "scoring", {})
    return told


def plain_spec(head: HeadSpec | None, labels: Sequence[str] | None = None) -> TaskSpec | None:
    """The task that a head which plain PEFT wrote stands for; None where it could be any.

    Args:
        labels: the base's own names of outputs, which count where there are as many as the head has.
    """
    found = [task_class(name).plain(head) for name in TASKS] if head is not None else []
    spec = next((spec for spec in found if spec is not None), None)
    return None if spec is None else _named(spec, head, labels)


def complete(spec: TaskSpec, head: HeadSpec | None, labels: Sequence[str] | None = None) -> TaskSpec:
    """Options whose labels are left open, with the base's, or LABEL_0, LABEL_1, … as transformers names them."""
    if not isinstance(spec, ClassificationSpec) or spec.outputs is not None or head is None:
        return spec
    plain = type(spec).model_validate(spec.model_dump() | {"labels": plain_labels(head.num_labels)})
    return _named(plain, head, labels)


def _named(spec: TaskSpec, head: HeadSpec | None, labels: Sequence[str] | None) -> TaskSpec:
    """The options with the base's labels, if there are as many as the head has outputs."""
    fits = labels is not None and head is not None and len(labels) == head.num_labels
    named = getattr(spec, "labels", None) is not None
    return spec.model_copy(update={"labels": tuple(labels or ())}) if fits and named else spec


__all__ = [
    "TASKS",
    "Column",
    "Features",
    "Row",
    "Task",
    "build_task",
    "complete",
    "plain_spec",
    "row_of",
    "scoring_of",
    "task_class",
    "task_of",
]
