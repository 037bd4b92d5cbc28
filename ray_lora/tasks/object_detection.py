"""Object detection: what is where. A row is

    {"image": b"<PNG bytes>", "objects": {"bbox": [[12.0, 3.5, 84.0, 67.5]], "category": ["cat"]}}

as Hugging Face's data sets have it; boxes are COCO's [x, y, width, height] in the upright picture's pixels, and a
picture without objects has empty lists. Pictures of any sizes share a pass: each is scaled into the base's input, and
its boxes come back in its own pixels, in the shape of Hugging Face's object-detection pipeline.

It is for anchor-free bases whose plain class gives logits, objectness and boxes of every anchor: YOLOX.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.augmented import Picture
from ray_lora.tasks.classification import ClassificationSpec, Labelled, taught
from ray_lora.tasks.detection.objects import clipped, objects_of, outside
from ray_lora.tasks.detection.options import FULL, SCORING, options_of
from ray_lora.tasks.images import open_picture
from ray_lora.tasks.labels import label_index, plain_labels
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.teaching import Taught, wrong_labels
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

    from ray_lora.tasks.detection.geometry import Grid

_PLAIN = "AutoModelForObjectDetection"
_WHITE = 255
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
        if not hasattr(processor, "strides"):
            raise RecipeError("object-detection needs a YOLOX as its base, such as yolox-tiny; this base is none")
        self.head = HeadSpec(_PLAIN, len(self.labels), self.labels)
        self._processor = processor
        height, width = processor.size
        self.longest: int = -(-height // _PATCH) * -(-width // _PATCH)

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
        pixels, inside = self._processor(picture)
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
        """pixel_values, [rows, 3, height, width], from 0 to 255."""
        import torch

        return {"pixel_values": torch.stack([row["pixel_values"] for row in features]).float()}

    @property
    def augments(self) -> frozenset[Needs]:
        return frozenset({"pictures", "colours"})

    def view(self, features: Features) -> Picture:
        """The part of the input that the picture takes, and its boxes in pixels of it."""
        import torch

        from ray_lora.tasks.detection.geometry import in_input

        wide, high = features["inside"]
        pixels = self._as_rgb(features["pixel_values"][:, :high, :wide]).float() / _WHITE
        boxes = in_input(features["boxes"], features["extent"], features["inside"])
        return Picture(pixels, (self._processor.ground / _WHITE,) * 3, boxes, torch.arange(len(boxes)))

    def with_view(self, features: Features, view: Picture) -> Features:
        from ray_lora.tasks.detection.geometry import in_picture

        assert view.boxes is not None
        assert view.objects is not None
        wide, high = features["inside"]
        pixels = features["pixel_values"].clone()
        pixels[:, :high, :wide] = self._as_rgb((view.pixels * _WHITE).round().clamp(0, _WHITE).to(pixels.dtype))
        corners = in_picture(view.boxes, features["extent"], features["inside"])
        return features | {
            "pixel_values": pixels,
            "boxes": [[x, y, far - x, low - y] for x, y, far, low in corners.tolist()],
            "classes": [features["classes"][at] for at in view.objects.tolist()],
        }

    def _as_rgb(self, pixels: Tensor) -> Tensor:
        """Of the base's order of channels, and back."""
        return pixels.flip(0) if self._processor.channel_order == "bgr" else pixels

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """In float32 at least, in which a pixel of a large picture is one; a row's terms are its learning anchors."""
        import torch

        from ray_lora.tasks.detection.geometry import in_input
        from ray_lora.tasks.detection.losses import picture_loss

        logits, objectness, boxes, grid = self._read(outputs)
        found = []
        for row, one in enumerate(features):
            objects = in_input(one["boxes"], one["extent"], one["inside"]).to(boxes)
            classes = torch.tensor(one["classes"], dtype=torch.long, device=boxes.device)
            found.append(picture_loss(logits[row], objectness[row], boxes[row], objects, classes, grid))
        sums, counts = zip(*found, strict=True)
        return torch.stack(sums), torch.stack(counts)

    def _read(self, outputs: Any) -> tuple[Tensor, Tensor, Tensor, Grid]:
        """Logits, objectness and boxes as corners in the input, and the grid of their anchors."""
        import torch

        from ray_lora.tasks.detection.geometry import grid_of

        wide = torch.promote_types(outputs["boxes"].dtype, torch.float32)
        logits, objectness, raw = (outputs[name].to(wide) for name in ("logits", "objectness", "boxes"))
        grid = grid_of(tuple(self._processor.size), tuple(self._processor.strides)).to(raw)
        return logits, objectness, grid.boxes(raw), grid

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        options_of(parameters)

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        """Each picture's objects, best first; a score is the objectness times the label's."""
        from ray_lora.tasks.detection.answers import answer, no_number

        options = options_of(parameters)
        logits, objectness, boxes, _ = self._read(outputs)
        scores = (logits.sigmoid() * objectness.sigmoid()[..., None]).cpu()
        numbers = [bool(all(values[row].isfinite().all() for values in outputs.values())) for row in range(len(scores))]
        return [
            answer(mine, corners, one, self.labels, options) if finite else no_number(self.labels)
            for finite, mine, corners, one in zip(numbers, scores, boxes.cpu(), features, strict=True)
        ]

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """COCO's mAP of answers with `scoring`, whose corners are not rounded."""
        from ray_lora.tasks.detection.scoring import measure

        return measure(predictions, features, self.labels)

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        from ray_lora.tasks.detection.drawing import drawn

        return drawn(predictions, features, self.labels, self._processor.channel_order)


def _categories(block: pa.Table) -> Iterable[tuple[int, Any]]:
    """(row, category) of every object; none of rows whose objects are wrong, which `check` names."""
    for row, objects in enumerate(block.column("objects").to_pylist()):
        try:
            categories = [one for crowds in (False, True) for one in objects_of(objects, crowds)[1]]
        except DataError:
            continue
        yield from ((row, category) for category in categories)
