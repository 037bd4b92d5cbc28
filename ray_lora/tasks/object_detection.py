"""Object detection: what is where. A row is

    {"image": b"<PNG bytes>", "objects": {"bbox": [[12.0, 3.5, 84.0, 67.5]], "category": ["cat"]}}

as Hugging Face's data sets have it; boxes are COCO's [x, y, width, height] in the upright picture's pixels, and a
picture without objects has empty lists. Pictures of any sizes share a pass: each is scaled into the base's input, and
its boxes come back in its own pixels, in the shape of Hugging Face's object-detection pipeline.

What differs between bases, which are YOLOX and transformers' YOLOS, DETR and RT-DETR, is in `detection/way.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.augmented import Picture
from ray_lora.tasks.classification import ClassificationSpec, Labelled, taught
from ray_lora.tasks.detection.objects import clipped, objects_of, outside
from ray_lora.tasks.detection.options import FULL, SCORING, options_of
from ray_lora.tasks.detection.ways import way_of
from ray_lora.tasks.images import open_picture
from ray_lora.tasks.labels import label_index, plain_labels
from ray_lora.tasks.soft_objects import SoftObjects
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.teaching import Taught, wrong_labels
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

_PLAIN = "AutoModelForObjectDetection"
_PATCH = 16  # a side, in pixels, as of other pictures


class ObjectDetectionSpec(ClassificationSpec):
    """Labels, of which there may be one only."""

    least: ClassVar[int] = 1
    type: Literal["object-detection"] = "object-detection"


class ObjectDetection(Labelled):
    """Boxes with labels, from the plain class AutoModelForObjectDetection."""

    spec_type: ClassVar[type[TaskSpec]] = ObjectDetectionSpec
    columns: ClassVar[Mapping[str, Column]] = {
        "image": Column(("image",), about="PNG or JPEG"),
        "objects": Column(("objects",), "training", "bbox, a list of [x, y, width, height], and category, of each"),
    }
    input: ClassVar[str] = "image"
    pipeline: ClassVar[str] = "object-detection"
    full: ClassVar[Mapping[str, Json]] = FULL
    scoring: ClassVar[Mapping[str, Json]] = SCORING
    fits_head: ClassVar[bool] = False  # which anchors learn what changes with every step, so no line search ends
    metric: ClassVar[str] = "map"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"map": "max", "map_50": "max"}
    peft_type: ClassVar[str | None] = None

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        super().__init__(spec)
        self.head = HeadSpec(_PLAIN, len(self.labels), self.labels)
        self._way = way_of(processor, self.labels)
        height, width = self._way.size
        self.longest: int = -(-height // _PATCH) * -(-width // _PATCH)

    @classmethod
    def on(cls, processor: Any) -> type[ObjectDetection]:
        """Of anchors where the base has them."""
        return AnchoredDetection if hasattr(processor, "strides") else cls

    # ------------------------------------------------------------ of a block of rows, before anything is loaded

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> Taught:
        return taught(spec, _categories(block))

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        """Every picture is decoded: its end may be missing, and its size says whether boxes are in it."""
        images = (image for chunk in block.column("image").chunks for image in chunk)
        for row, (image, objects) in enumerate(zip(images, block.column("objects").to_pylist(), strict=True)):
            value = image.as_py()
            try:
                width, height = open_picture(value).size
                boxes = [box for crowds in (False, True) for box in objects_of(objects, crowds)[0]]
                why = outside(boxes, width, height)
            except DataError as error:
                why = str(error)
            if why is not None:
                name = value.get("path") if isinstance(value, Mapping) else None
                yield row, f"picture {name!r}: {why}" if name else why
        yield from wrong_labels(_categories(block), cast(ClassificationSpec, spec).labels or ())

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        known = head.architecture == _PLAIN
        return ObjectDetectionSpec(labels=plain_labels(head.num_labels)) if known else None

    # ------------------------------------------------------------ of rows on their way through the model

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        return [self._encode(row) for row in rows]

    def _encode(self, row: Row) -> Features:
        picture = open_picture(row["image"])
        pixels, inside = self._way.pixels(picture)
        features = Features(pixel_values=pixels, extent=list(picture.size), inside=list(inside))
        if row.get("objects") is not None:
            boxes, categories = objects_of(row["objects"])
            features["boxes"] = [clipped(box, *picture.size) for box in boxes]
            features["classes"] = [label_index(category, self.labels) for category in categories]
            boxes, categories = objects_of(row["objects"], crowds=True)
            features["crowd_boxes"] = [clipped(box, *picture.size) for box in boxes]
            features["crowd_classes"] = [label_index(category, self.labels) for category in categories]
        return features

    def size(self, features: Features) -> int:
        """Patches of 16 by 16 pixels."""
        return self.longest

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """pixel_values, [rows, 3, height, width]; pixel_mask, [rows, height, width], of a class that is told which
        pixels are the picture's."""
        import torch

        inputs = {"pixel_values": torch.stack([row["pixel_values"] for row in features]).float()}
        if self._way.masked:
            inputs["pixel_mask"] = torch.zeros(len(features), *self._way.size, dtype=torch.long)
            for mask, row in zip(inputs["pixel_mask"], features, strict=True):
                wide, high = row["inside"]
                mask[:high, :wide] = 1
        return inputs

    @property
    def augments(self) -> frozenset[Needs]:
        return frozenset({"pictures", "colours"})

    def view(self, features: Features) -> Picture:
        """The part of the input that the picture takes, and its boxes in pixels of it."""
        import torch

        from ray_lora.tasks.detection.geometry import in_input

        wide, high = features["inside"]
        pixels = self._way.shown(features["pixel_values"][:, :high, :wide])
        boxes = in_input(features["boxes"], features["extent"], features["inside"])
        return Picture(pixels, self._way.ground, boxes, torch.arange(len(boxes)))

    def with_view(self, features: Features, view: Picture) -> Features:
        from ray_lora.tasks.detection.geometry import in_picture

        assert view.boxes is not None
        assert view.objects is not None
        wide, high = features["inside"]
        pixels = features["pixel_values"].clone()
        pixels[:, :high, :wide] = self._way.of_shown(view.pixels)
        corners = in_picture(view.boxes, features["extent"], features["inside"])
        return features | {
            "pixel_values": pixels,
            "boxes": [[x, y, far - x, low - y] for x, y, far, low in corners.tolist()],
            "classes": [features["classes"][at] for at in view.objects.tolist()],
        }

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """A row's terms are its learning anchors (YOLOX), or the row itself (of queries)."""
        import torch

        from ray_lora.tasks.detection.geometry import in_input

        objects = [
            (in_input(one["boxes"], one["extent"], one["inside"]), torch.tensor(one["classes"], dtype=torch.long))
            for one in features
        ]
        return self._way.losses(outputs, objects)

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        options_of(parameters, self._way.iou)

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        """Each picture's objects, best first."""
        from ray_lora.tasks.detection.answers import answer, no_number

        options, found = options_of(parameters, self._way.iou), self._way.found(outputs)
        scores, boxes = found.scores.cpu(), found.boxes.cpu()
        return [
            answer(mine, corners, one, self.labels, options) if finite else no_number(self.labels)
            for finite, mine, corners, one in zip(found.finite, scores, boxes, features, strict=True)
        ]

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """COCO's mAP of answers with `scoring`, whose corners are not rounded."""
        from ray_lora.tasks.detection.scoring import measure

        return measure(predictions, features, self.labels)

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        from ray_lora.tasks.detection.drawing import drawn

        return drawn(predictions, features, self.labels, self._way.shown)


class AnchoredDetection(SoftObjects, ObjectDetection):
    """On a base of anchors, which may learn from a teacher what each of them says."""


def _categories(block: pa.Table) -> Iterable[tuple[int, Any]]:
    """(row, category) of every object; none of rows whose objects are wrong, which `check` names."""
    for row, objects in enumerate(block.column("objects").to_pylist()):
        try:
            categories = [one for crowds in (False, True) for one in objects_of(objects, crowds)[1]]
        except DataError:
            continue
        yield from ((row, category) for category in categories)
