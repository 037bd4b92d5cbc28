"""Train, search and serve many LoRA adapters on one shared frozen base, on Ray.

The public names are here and are loaded when they are first used, so that `import ray_lora` costs neither torch nor
transformers nor MLflow nor Ray.

    from ray_lora import LoraTuner, Recipe
    result = LoraTuner(Recipe.load("examples/tweets.yaml")).fit()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ray_lora.uncollected import uncollected

if TYPE_CHECKING:
    from ray_lora.adapters.adapter import Adapter, Card
    from ray_lora.allowed import allow
    from ray_lora.bases.base import Base
    from ray_lora.bases.built import BuildContext, Built
    from ray_lora.bases.load import load_base
    from ray_lora.engine import AdapterEngine
    from ray_lora.errors import (
        AdapterError,
        AdapterNotFoundError,
        BaseModelError,
        CapacityError,
        DataError,
        RayLoraError,
        RecipeError,
    )
    from ray_lora.inference.stored import evaluate_ref, predict_ref
    from ray_lora.recipe import (
        BaseSpec,
        DataSpec,
        LoraSpec,
        Recipe,
        ScalingSpec,
        SearchSpec,
        TaskSpec,
        TrackingSpec,
        TrainingSpec,
    )
    from ray_lora.running.predictor import LoraPredictor
    from ray_lora.running.trainer import LoraTrainer
    from ray_lora.search.tuner import LoraTuner
    from ray_lora.serving import AppArgs, build_app
    from ray_lora.store import Entry, Store, open_store
    from ray_lora.tasks.image_classification import ImageClassificationSpec
    from ray_lora.tasks.object_detection import ObjectDetectionSpec
    from ray_lora.tasks.segmentation.options import ImageSegmentationSpec
    from ray_lora.tasks.text_classification import TextClassificationSpec

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterEngine",
    "AdapterError",
    "AdapterNotFoundError",
    "AppArgs",
    "Base",
    "BaseModelError",
    "BaseSpec",
    "BuildContext",
    "Built",
    "CapacityError",
    "Card",
    "DataError",
    "DataSpec",
    "Entry",
    "ImageClassificationSpec",
    "ImageSegmentationSpec",
    "LoraPredictor",
    "LoraSpec",
    "LoraTrainer",
    "LoraTuner",
    "ObjectDetectionSpec",
    "RayLoraError",
    "Recipe",
    "RecipeError",
    "ScalingSpec",
    "SearchSpec",
    "Store",
    "TaskSpec",
    "TextClassificationSpec",
    "TrackingSpec",
    "TrainingSpec",
    "__version__",
    "allow",
    "build_app",
    "evaluate_ref",
    "load_base",
    "open_store",
    "predict_ref",
]

_MODULES = {  # public name -> the module that holds it
    "adapters.adapter": ("Adapter", "Card"),
    "allowed": ("allow",),
    "bases.base": ("Base",),
    "bases.built": ("BuildContext", "Built"),
    "bases.load": ("load_base",),
    "engine": ("AdapterEngine",),
    "errors": (
        "AdapterError",
        "AdapterNotFoundError",
        "BaseModelError",
        "CapacityError",
        "DataError",
        "RayLoraError",
        "RecipeError",
    ),
    "inference.stored": ("evaluate_ref", "predict_ref"),
    "recipe": (
        "BaseSpec",
        "DataSpec",
        "LoraSpec",
        "Recipe",
        "ScalingSpec",
        "SearchSpec",
        "TaskSpec",
        "TrackingSpec",
        "TrainingSpec",
    ),
    "search.tuner": ("LoraTuner",),
    "serving": ("AppArgs", "build_app"),
    "store": ("Entry", "Store", "open_store"),
    "running.predictor": ("LoraPredictor",),
    "running.trainer": ("LoraTrainer",),
    "tasks.image_classification": ("ImageClassificationSpec",),
    "tasks.object_detection": ("ObjectDetectionSpec",),
    "tasks.segmentation.options": ("ImageSegmentationSpec",),
    "tasks.text_classification": ("TextClassificationSpec",),
}
_HOME = {name: f"ray_lora.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:  # PEP 562
    if name not in _HOME:
        raise AttributeError(f"module 'ray_lora' has no attribute {name!r}")
    with uncollected():
        value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
