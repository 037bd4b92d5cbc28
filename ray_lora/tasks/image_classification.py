"""Image classification: a row is

    {"image": b"<PNG bytes>", "label": "7"}

whose image is what `images` opens. Where one label is of interest, such as a rare defect, `positive` names it
(`inspection`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, PrivateAttr, SerializerFunctionWrapHandler, model_serializer, model_validator

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError, did_you_mean
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.augmented import Picture
from ray_lora.tasks.classification import LABEL, Classification, ClassificationSpec
from ray_lora.tasks.images import open_picture, size_of
from ray_lora.tasks.inspection import Inspection, Interest
from ray_lora.tasks.normalised import Normalised
from ray_lora.tasks.task import Column, Features, Row, Task
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

_PATCH = 16  # a side, in pixels, as in the Vision Transformer (arXiv 2010.11929)
_SQUEEZED = 384  # from this size on ConvNeXt's processor scales to a square, whatever the shape
_MOST_SCALED = 1 << 24  # pixels of a scaled picture: processors take ten bytes for each


_UNSAID: Mapping[str, Json] = {"image_size": None, "positive": None, "threshold": None, "false_alarms": 0.01}


class ImageClassificationSpec(ClassificationSpec):
    """Labels, the size of pictures, and which label is of interest."""

    type: Literal["image-classification"] = "image-classification"
    image_size: int | None = Field(default=None, ge=8)  # pixels a side, for bases that take any; None: the base's own
    positive: str | None = None  # the label of interest
    threshold: float | None = Field(default=None, gt=0)  # null: the validation rows choose it
    false_alarms: float = Field(default=0.01, ge=0, lt=1)  # share of other rows that may be called positive
    # Means nothing to an image. It was an option of every task, so cards hold it and their content hash covers it.
    _max_length: int = PrivateAttr(default=128)

    @model_validator(mode="after")
    def _together(self) -> ImageClassificationSpec:
        if self.positive is None and (self.threshold is not None or self.false_alarms != _UNSAID["false_alarms"]):
            raise ValueError("threshold and false_alarms are of a label of interest; name it: task.positive")
        if self.positive is not None and self.labels is not None:
            _check_positive(self.positive, self.labels)
        return self

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Json]:
        told: dict[str, Json] = handler(self)
        return {key: value for key, value in told.items() if key not in _UNSAID or value != _UNSAID[key]}

    def describe(self) -> dict[str, Json]:
        told = {"positive": self.positive, "threshold": self.threshold}
        return super().describe() | {key: value for key, value in told.items() if value is not None}

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
    def of(cls, spec: TaskSpec) -> type[Task]:
        """The class that does what these options ask for."""
        interest = getattr(spec, "positive", None)
        return cls if interest is None else PictureInspection

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[Any]) -> TaskSpec:
        known = cast(ImageClassificationSpec, super().merge(spec, learned))
        positive = getattr(known, "positive", None)
        if positive is not None:
            try:
                _check_positive(positive, known.labels or ())
            except ValueError as error:
                raise RecipeError(f"task.{error}") from None
        return known

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

    def unknown(self, block: pa.Table) -> Iterator[tuple[int, str]]:
        """The rows whose picture is too long for this base's processor."""
        if self._edge is None:
            return
        values = (image.as_py() for chunk in block.column("image").chunks for image in chunk)
        for row, image in enumerate(values):
            try:
                size = size_of(image)
            except DataError:
                continue  # `check` names it
            if why := self._too_long(size):
                yield row, why

    @cached_property
    def _edge(self) -> int | None:
        """The shortest side, in pixels, to which the processor scales a picture of any shape; None where it bounds the
        other one too."""
        size = self._sizes().get("size") or dict(getattr(self._processor, "size", None) or {})
        edge: int | None = size.get("shortest_edge")
        squeezes = hasattr(self._processor, "crop_pct") and (edge or 0) >= _SQUEEZED
        return None if size.get("longest_edge") is not None or squeezes else edge

    def _too_long(self, size: tuple[int, int]) -> str | None:
        """What to say of a picture of this width and height that would be scaled to more than fits memory."""
        if self._edge is None:
            return None
        width, height = (-(-side * self._edge // min(size)) for side in size)
        if width * height <= _MOST_SCALED:
            return None
        return (
            f"an image of {size[0]} x {size[1]} pixels would be scaled to {width:,} x {height:,} before its middle is "
            "cut out; cut it into pieces, or pad it"
        )

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
        for image in images:
            if why := self._too_long(image.size):
                raise DataError(why)
        pixels = self._processor(images, return_tensors="pt", **self._sizes())["pixel_values"]
        return self._with_targets([Features(pixel_values=image) for image in pixels], rows)

    def _sizes(self) -> dict[str, dict[str, int]]:
        """The processor's own sizes, all of their numbers `image_size`."""
        side = getattr(self.spec, "image_size", None)
        if side is None:
            return {}
        own = {name: getattr(self._processor, name, None) for name in ("size", "crop_size")}
        return {name: dict.fromkeys(dict(size), side) for name, size in own.items() if size}

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

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        """`confusion_matrix`, and `pictures`: above those answered right, the surest first, below those answered
        wrong, the surest last."""
        from ray_lora.tasks.sheet import sheet

        truth = [self.labels[target] for target in self.targets(features)]
        right = [answer["label"] == label for answer, label in zip(predictions, truth, strict=True)]

        def draw(axis: Any, row: int) -> None:
            answer = predictions[row]
            axis.imshow(self._seen(features[row]).permute(1, 2, 0).clamp(0, 1).numpy())
            said = f"{answer['label']} {answer['score']:.2f}" + ("" if right[row] else f"\nis {truth[row]}")
            axis.set_title(said, fontsize=8, color="green" if right[row] else "red")

        order = sorted(
            range(len(right)), key=lambda row: (not right[row], predictions[row]["score"] * (-1 if right[row] else 1))
        )
        return {**super().figures(predictions, features), "pictures": sheet(order, draw)}

    def _seen(self, features: Features) -> Tensor:
        """[channels, height, width] from 0 to 1; as bright as its brightest where it cannot be told what the processor
        does."""
        pixels: Tensor = features["pixel_values"].float()
        if self._normalised is not None:
            return self._normalised.shown(pixels)
        low, high = pixels.min(), pixels.max()
        return (pixels - low) / (high - low).clamp(min=1e-6)


class PictureInspection(Inspection, ImageClassification):
    """Pictures among whose labels one is of interest."""

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        ImageClassification.__init__(self, spec, processor)
        options = cast(ImageClassificationSpec, spec)
        assert options.positive is not None
        self.interest = Interest(options.positive, options.threshold, options.false_alarms)


def _check_positive(positive: str, labels: Sequence[str]) -> None:
    if positive not in labels:
        raise ValueError(
            f"positive {positive!r} is not one of the labels {', '.join(labels)}{did_you_mean(positive, labels)}"
        )
