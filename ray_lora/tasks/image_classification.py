"""Image classification: a row is

    {"image": b"<PNG bytes>", "label": "7"}

whose image is what `images` opens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PrivateAttr

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.augmented import Picture
from ray_lora.tasks.classification import LABEL, Classification, ClassificationSpec
from ray_lora.tasks.images import open_picture
from ray_lora.tasks.normalised import Normalised
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

_PATCH = 16  # a side, in pixels, as in the Vision Transformer (arXiv 2010.11929)


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
                    open_picture(image.as_py())
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
        images = [open_picture(row["image"]) for row in rows]
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

    @cached_property
    def _normalised(self) -> Normalised | None:
        return Normalised.of(self._processor)

    @property
    def augments(self) -> frozenset[Needs]:
        """Nothing where it cannot be told what the processor does."""
        found = self._normalised
        return frozenset() if found is None else frozenset({"pictures", "colours"} if found.colours else {"pictures"})

    def view(self, features: Features) -> Picture:
        """What comes in from outside is what the processor makes zero of."""
        assert self._normalised is not None  # else it augments nothing
        return Picture(self._normalised.shown(features["pixel_values"]), self._normalised.ground)

    def with_view(self, features: Features, view: Picture) -> Features:
        assert self._normalised is not None
        pixels = self._normalised.of_shown(view.pixels)
        return features | {"pixel_values": pixels.to(features["pixel_values"].dtype)}
