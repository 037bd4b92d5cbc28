"""A task of a package that is not the library's, which workers import by name."""

from __future__ import annotations

from typing import ClassVar, Literal

from ray_lora.recipe import TaskSpec
from ray_lora.tasks.classification import ClassificationSpec
from ray_lora.tasks.text_classification import TextClassification

TYPE = "tests.ray.own:Loud"


class LoudSpec(ClassificationSpec):
    """Labels, how much of a text counts, and how loud it is read."""

    type: Literal["tests.ray.own:Loud"] = "tests.ray.own:Loud"
    max_length: int = 16
    loud: bool = False


class Loud(TextClassification):
    """Text classification under another name and with an option of its own."""

    spec_type: ClassVar[type[TaskSpec]] = LoudSpec
