"""Image classification: a row is

    {"image": b"<PNG bytes>", "label": "7"}

whose image is PNG or JPEG bytes, base64 text of them, a PIL image, or {"bytes": ..., "path": ...} as `datasets` writes
it. It is seen as `transformers.image_utils.load_image` sees it: upright, as its EXIF orientation says, and in RGB.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PrivateAttr

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.classification import LABEL, Classification, ClassificationSpec
from ray_lora.tasks.task import Column, Features, Row

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

_PATCH = 16  # a side, in pixels, as in the Vision Transformer (arXiv 2010.11929)
_WHAT = "give PNG or JPEG bytes, or base64 text of them"
_WIDE = {"I": "whole numbers of 16 bits or more", "F": "fractions"}


class ImageClassificationSpec(ClassificationSpec):
    """Labels."""

    type: Literal["image-classification"] = "image-classification"
    # Means nothing to an image. It was an option of every task, so cards hold it and their content hash covers it.
    _max_length: int = PrivateAttr(default=128)

    def recorded(self) -> dict[str, Json]:
        return super().recorded() | {"max_length": self._max_length}

    @classmethod
    def recall(cls, told: Mapping[str, Json]) -> TaskSpec:
        spec = cls.model_validate({key: value for key, value in told.items() if key != "max_length"})
        spec._max_length = told.get("max_length", 128)
        return spec


class ImageClassification(Classification):
    """One label an image, from the plain class AutoModelForImageClassification."""

    spec_type: ClassVar[type[TaskSpec]] = ImageClassificationSpec
    columns: ClassVar[Mapping[str, Column]] = {"image": Column(("image",), about="PNG or JPEG"), "label": LABEL}
    input: ClassVar[str] = "image"
    pipeline: ClassVar[str] = "image-classification"
    peft_type: ClassVar[str | None] = None

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        super().__init__(spec)
        if processor is None or hasattr(processor, "pad_token_id"):
            raise RecipeError("image-classification needs a base with an image processor; this base has none")
        self.head = HeadSpec("AutoModelForImageClassification", len(self.labels), self.labels)
        self._processor = processor

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        """Every image is decoded: that an end is missing shows nowhere else."""
        row = 0
        for chunk in block.column("image").chunks:
            for image in chunk:
                try:
                    _open(image.as_py())
                except DataError as error:
                    yield row, str(error)
                row += 1
        yield from super().check(spec, block)

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        """PEFT has no task_type of images, so its folders do not name this head."""
        return None

    @cached_property
    def longest(self) -> int:
        from PIL import Image

        return self.size(self.encode([{"image": Image.new("RGB", (512, 512))}])[0])

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        images = [_open(row["image"]) for row in rows]
        pixels = self._processor(images, return_tensors="pt")["pixel_values"]
        return self._with_targets([Features(pixel_values=image) for image in pixels], rows)

    def size(self, features: Features) -> int:
        """Patches of 16 by 16 pixels."""
        height, width = features["pixel_values"].shape[-2:]
        return int(-(-height // _PATCH) * -(-width // _PATCH))

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """pixel_values, [rows, channels, height, width]."""
        import torch

        return {"pixel_values": torch.stack([row["pixel_values"] for row in features])}


def _open(image: Any) -> Any:
    """An upright RGB PIL image from encoded bytes, base64 text of them, a mapping that holds either, or a PIL image."""
    from PIL import Image, ImageOps

    if isinstance(image, Mapping):
        if image.get("bytes") is None:
            path = image.get("path")
            raise DataError(f"an image has no bytes, only the path {path!r}; write its bytes beside the path; {_WHAT}")
        image = image["bytes"]
    if not isinstance(image, (str, bytes, bytearray, memoryview, Image.Image)):
        raise DataError(f"an image is a {type(image).__name__}; {_WHAT}")
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(io.BytesIO(_decoded(image)))
        if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"{opened.width} by {opened.height} pixels; scale it down")
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are {_WIDE[opened.mode[0]]} and would be cut to 8 bits; scale it to 8 bits")
        upright = ImageOps.exif_transpose(opened)
        if upright.mode == "P":  # RGB drops it, and Pillow would warn
            upright.info.pop("transparency", None)
        return upright.convert("RGB")
    except Exception as error:  # Pillow's decoders raise errors of many kinds on what is broken
        raise DataError(f"an image cannot be read ({error}); {_WHAT}") from None


def _decoded(image: str | bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    import base64

    return base64.b64decode(image, validate=True) if isinstance(image, str) else image
