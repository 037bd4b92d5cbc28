"""Where are the things? A row is

    {"image": b"<PNG bytes>", "boxes": [[2.0, 4.0, 8.0, 6.0]]}

whose boxes are [x, y, width, height] in pixels from the upper left corner; a picture without things has none: [].
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks import Column, Features, Row

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture
    from torch import Tensor

Box = Sequence[float]

GRID = 4  # cells a side, of the base
SIDE = 8 * GRID  # pixels a side, of the base


class BoxesSpec(TaskSpec):
    """The keys below `task` of a recipe."""

    type: Literal["tests.boxes.task:Boxes"] = "tests.boxes.task:Boxes"
    threshold: float = 0.5  # a cell that is less sure finds nothing

    def describe(self) -> dict[str, Json]:
        return {"threshold": self.threshold}

    @property
    def outputs(self) -> int:
        return 5


class Boxes:
    spec_type: ClassVar[type[TaskSpec]] = BoxesSpec
    columns: ClassVar[Mapping[str, Column]] = {
        "image": Column(("image",), about="the picture: an encoded file, or pixels [height, width, 3]"),
        "boxes": Column(("list",), "training", "[x, y, width, height] of each thing in it, in pixels"),
    }
    input: ClassVar[str] = "image"
    pipeline: ClassVar[str] = "object-detection"
    full: ClassVar[Mapping[str, Json]] = {"threshold": 0.0}
    metric: ClassVar[str] = "mean_best_iou"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"mean_best_iou": "max"}
    peft_type: ClassVar[str | None] = None

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        assert isinstance(spec, BoxesSpec)
        self.spec, self.threshold = spec, spec.threshold  # this base has no processor
        self.head = HeadSpec("Finder", 5)
        self.longest = GRID * GRID

    # ---------------------------------------------- of a block of rows, before anything is loaded

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> Any:
        return None  # rows teach nothing

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[Any]) -> TaskSpec:
        return spec

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        boxes = block.column("boxes").to_pylist()
        for row, (image, found) in enumerate(zip(block.column("image").to_pylist(), boxes, strict=True)):
            try:
                size = read(image).size
            except DataError as error:
                yield row, str(error)
            else:
                if not isinstance(found, list):
                    yield row, f"boxes {found!r} is no list; a picture without things has []"
                    continue
                wrong = next((box for box in found if not inside(box, size)), None)
                if wrong is not None:
                    where = f"a picture of {size[0]} x {size[1]} pixels"
                    yield row, f"box {wrong} is no [x, y, width, height] inside {where}"

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        return None

    # ---------------------------------------------- of rows on their way through the model

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        return [self.row(row) for row in rows]

    def row(self, row: Row) -> Features:
        import numpy
        import torch

        picture = read(row["image"])
        pixels = numpy.asarray(picture.resize((SIDE, SIDE)), numpy.float32) / 255
        features: Features = {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1), "extent": picture.size}
        if row.get("boxes") is not None:
            wide, high = picture.size
            features["boxes"] = [
                [(x + w / 2) / wide, (y + h / 2) / high, w / wide, h / high] for x, y, w, h in row["boxes"]
            ]
        return features

    def size(self, features: Features) -> int:
        return GRID * GRID

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        import torch

        return {"pixel_values": torch.stack([row["pixel_values"] for row in features])}

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        sure, boxes = outputs["sure"], outputs["boxes"]  # [rows, cells], [rows, cells, 4]
        truth = torch.zeros_like(sure)
        off = [sure.new_zeros(()) for _ in features]
        for row, one in enumerate(features):
            for box in one["boxes"]:
                cell = cell_of(box)
                truth[row, cell] = 1
                off[row] = off[row] + (boxes[row, cell] - boxes.new_tensor(box)).abs().sum()
        unsure = binary_cross_entropy_with_logits(sure, truth, reduction="none").sum(1)
        return unsure + torch.stack(off), torch.full_like(unsure, sure.shape[1])

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        unknown = sorted(set(parameters) - {"threshold"})
        if unknown:
            raise RecipeError(f"parameters {unknown} are not known to this task; it takes 'threshold'")
        threshold = parameters.get("threshold", self.threshold)
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise RecipeError(f"threshold {threshold!r} is no number from 0 to 1")

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        self.check_parameters(parameters)
        threshold = parameters.get("threshold", self.threshold)
        sure, boxes = outputs["sure"].float().sigmoid().tolist(), outputs["boxes"].float().tolist()
        return [
            [
                {"score": score, "box": corners(box, row["extent"])}
                for score, box in sorted(zip(scores, cells, strict=True), reverse=True)
                if score >= threshold
            ]
            for scores, cells, row in zip(sure, boxes, features, strict=True)
        ]

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        scores = [self.match(answer, row) for answer, row in zip(predictions, features, strict=True)]
        return {"mean_best_iou": sum(scores) / len(scores)}

    def match(self, answer: Json, row: Features) -> float:
        found = [one["box"] for one in answer if one["score"] >= self.threshold]
        if not row["boxes"]:
            return float(not found)
        truth = [corners(box, row["extent"]) for box in row["boxes"]]
        return sum(max((overlap(box, one) for one in found), default=0.0) for box in truth) / len(truth)

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        figure = Figure()
        axes = figure.subplots(1, 4)
        for axis, answer, row in zip(axes, predictions, features, strict=False):
            wide, high = row["extent"]
            axis.imshow(row["pixel_values"].permute(1, 2, 0).numpy(), extent=(0, wide, high, 0))
            axis.set_axis_off()
            found = [one["box"] for one in answer if one["score"] >= self.threshold]
            for colour, boxes in (("white", [corners(box, row["extent"]) for box in row["boxes"]]), ("red", found)):
                for box in boxes:
                    corner = (box["xmin"], box["ymin"])
                    sides = (box["xmax"] - box["xmin"], box["ymax"] - box["ymin"])
                    axis.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour))
        return {"boxes": figure}


def read(image: Any) -> Picture:
    """The picture that a row holds; a DataError for what is none."""
    import numpy
    from PIL import Image, UnidentifiedImageError

    if isinstance(image, dict):  # as Hugging Face's data sets store pictures
        image = image.get("bytes")
    if isinstance(image, str | bytes):
        try:
            data = base64.b64decode(image, validate=True) if isinstance(image, str) else image
            return Image.open(io.BytesIO(data)).convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(f"image is no picture file: {error}") from None
    try:
        pixels = numpy.asarray(image, numpy.uint8)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"image is neither a picture file nor pixels [height, width, 3]: {error}") from None
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(f"image is of shape {list(pixels.shape)}; pixels are [height, width, 3]")
    return Image.fromarray(pixels)


def inside(box: Any, size: tuple[int, int]) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        return False
    x, y, wide, high = map(float, box)
    return wide > 0 and high > 0 and x >= 0 and y >= 0 and x + wide <= size[0] and y + high <= size[1]


def cell_of(box: Box) -> int:
    return min(int(box[1] * GRID), GRID - 1) * GRID + min(int(box[0] * GRID), GRID - 1)


def corners(box: Box, extent: tuple[int, int]) -> dict[str, float]:
    """Shares (middle x, middle y, width, height) as corners in pixels, named as the pipeline names them."""
    (x, y, wide, high), (across, down) = box, extent
    return {
        "xmin": (x - wide / 2) * across,
        "ymin": (y - high / 2) * down,
        "xmax": (x + wide / 2) * across,
        "ymax": (y + high / 2) * down,
    }


def overlap(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    wide = min(one["xmax"], other["xmax"]) - max(one["xmin"], other["xmin"])
    high = min(one["ymax"], other["ymax"]) - max(one["ymin"], other["ymin"])
    shared = max(wide, 0.0) * max(high, 0.0)
    both = sum((box["xmax"] - box["xmin"]) * (box["ymax"] - box["ymin"]) for box in (one, other))
    return shared / (both - shared) if both > shared else 0.0
