"""The transforms by the name that recipes know them by; what is in the table is imported when asked for.

transform_class("horizontal_flip")    # ray_lora.augmentation.geometry.HorizontalFlip
"""

from __future__ import annotations

import importlib
from typing import Any

TRANSFORMS: dict[str, str] = {
    "horizontal_flip": "ray_lora.augmentation.geometry:HorizontalFlip",
    "vertical_flip": "ray_lora.augmentation.geometry:VerticalFlip",
    "rotation": "ray_lora.augmentation.geometry:Rotation",
    "affine": "ray_lora.augmentation.geometry:Affine",
    "crop_and_resize": "ray_lora.augmentation.geometry:CropAndResize",
    "perspective": "ray_lora.augmentation.geometry:Perspective",
    "color_jitter": "ray_lora.augmentation.pixels:ColorJitter",
    "grayscale": "ray_lora.augmentation.pixels:Grayscale",
    "blur": "ray_lora.augmentation.pixels:Blur",
    "noise": "ray_lora.augmentation.pixels:Noise",
    "erasing": "ray_lora.augmentation.pixels:Erasing",
    "speed": "ray_lora.augmentation.sounds:Speed",
    "gain": "ray_lora.augmentation.sounds:Gain",
    "background_noise": "ray_lora.augmentation.sounds:BackgroundNoise",
    "time_mask": "ray_lora.augmentation.sounds:TimeMask",
    "frequency_mask": "ray_lora.augmentation.sounds:FrequencyMask",
    "token_masking": "ray_lora.augmentation.tokens:TokenMasking",
    "token_dropout": "ray_lora.augmentation.tokens:TokenDropout",
    "token_swap": "ray_lora.augmentation.tokens:TokenSwap",
}


def transform_class(name: str) -> Any:
    """The options of a transform in the table, which do it too (`ray_lora.transform_spec.TransformSpec`)."""
    module, _, attribute = TRANSFORMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
