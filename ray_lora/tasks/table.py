"""The tasks by the name that recipes, cards and requests know them by; what is in the table is imported when asked for.

task_class("text-classification")    # ray_lora.tasks.text_classification.TextClassification
task_class("shop.tasks:Rating")      # of an installed package, once the user has allowed it
"""

from __future__ import annotations

import importlib
from typing import Any

from ray_lora import allowed
from ray_lora.bounds import named, short
from ray_lora.errors import RecipeError, did_you_mean

TASKS: dict[str, str] = {
    "text-classification": "ray_lora.tasks.text_classification:TextClassification",
    "token-classification": "ray_lora.tasks.token_classification:TokenClassification",
    "question-answering": "ray_lora.tasks.question_answering:QuestionAnswering",
    "text-generation": "ray_lora.tasks.text_generation:TextGeneration",
    "image-classification": "ray_lora.tasks.image_classification:ImageClassification",
    "object-detection": "ray_lora.tasks.object_detection:ObjectDetection",
    "image-segmentation": "ray_lora.tasks.image_segmentation:ImageSegmentation",
    "automatic-speech-recognition": "ray_lora.tasks.speech_recognition:SpeechRecognition",
    "sequential-recommendation": "ray_lora.tasks.sequential_recommendation:SequentialRecommendation",
}
DEFAULT = "text-classification"


def task_class(name: str) -> Any:
    """The class that implements a task (`ray_lora.tasks.Task`).

    Raises:
        RecipeError: there is no such task, or it is code of the user's that he has not allowed, or is no task.
    """
    if name in TASKS:
        module, _, attribute = TASKS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if not allowed.is_name(name):
        raise RecipeError(
            f"{named(name)} is not a task{did_you_mean(short(name), TASKS)}; there are {', '.join(TASKS)}, and "
            "package.module:Class for a task of your own"
        )
    found = allowed.load(name)
    if not hasattr(found, "spec_type"):
        raise RecipeError(f"{name!r} is not a task: it has no `spec_type`; docs/add-a-task.md says what a task is")
    return found
