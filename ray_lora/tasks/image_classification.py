"""Image classification: a row is

    {"image": b"<PNG bytes>", "label": "7"}

whose image is PNG or JPEG bytes, base64 text of them, or a PIL image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import TaskSpec
from ray_lora.tasks.classification import Classification
from ray_lora.tasks.task import Features, Row, label_index


class ImageClassification(Classification):
    """One label an image, from the plain class AutoModelForImageClassification."""

    columns: ClassVar[tuple[str, ...]] = ("image", "label")
    peft_type: ClassVar[str | None] = None

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        super().__init__(spec)
        if processor is None or hasattr(processor, "pad_token_id"):
            raise RecipeError("image-classification needs a base with an image processor; this base has none")
        self.head = HeadSpec("AutoModelForImageClassification", len(self.labels))
        self._processor = processor

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        images = [_open(row["image"]) for row in rows]
        pixels = self._processor(images, return_tensors="pt")["pixel_values"]
        features = [Features(pixel_values=image) for image in pixels]
        for feature, row in zip(features, rows, strict=True):
            if row.get("label") is not None:
                feature["labels"] = label_index(row["label"], self.labels)
        return features

    def size(self, features: Features) -> int:
        return 1

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """pixel_values, [rows, channels, height, width]."""
        return {"pixel_values": torch.stack([row["pixel_values"] for row in features])}


def _open(image: Any) -> Any:
    """A PIL image from encoded bytes, base64 text of them, or a PIL image."""
    import base64

    from PIL import Image

    what = "give PNG or JPEG bytes, or base64 text of them"
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, (str, bytes, bytearray, memoryview)):
        raise DataError(f"an image is a {type(image).__name__}; {what}")
    try:
        data = base64.b64decode(image, validate=True) if isinstance(image, str) else image
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception as error:  # Pillow's decoders raise errors of many kinds on what is broken
        raise DataError(f"an image cannot be read ({error}); {what}") from None
