"""Tasks: what is predicted and how it is scored. They know rows and losses, not slots.

    task = build_task(TaskSpec(type="text-classification", labels=("negative", "positive")), base.processor)

A new task is one file here, one line in `TASKS`, and `tests/conformance.py` says whether it keeps the rules.
"""

from __future__ import annotations

from typing import Any

from ray_lora.recipe import TaskSpec
from ray_lora.tasks.image_classification import ImageClassification
from ray_lora.tasks.task import Features, Row, Task
from ray_lora.tasks.text_classification import TextClassification

TASKS: dict[str, type[TextClassification] | type[ImageClassification]] = {
    "text-classification": TextClassification,
    "image-classification": ImageClassification,
}


def build_task(spec: TaskSpec, processor: Any) -> Task:
    """The task of a spec on a base with this processor; RecipeError when the two do not fit."""
    return TASKS[spec.type](spec, processor)


__all__ = ["TASKS", "Features", "Row", "Task", "build_task"]
