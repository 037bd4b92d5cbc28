"""Image segmentation: which class every pixel shows. A row is

    {"image": b"<PNG bytes>", "mask": b"<PNG bytes whose pixels are class indices>"}

as Hugging Face's data sets for semantic segmentation have it, or with a `mask` of COCO's objects. Pictures of any sizes
share a pass: each is scaled into the base's input, and its mask comes back in its own pixels, in the shape of Hugging
Face's image-segmentation pipeline.

It is for SegFormer of transformers, and for the segmenters of `ray_lora.bases.segmenters`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.augmented import Picture
from ray_lora.tasks.classification import Labelled
from ray_lora.tasks.images import open_picture
from ray_lora.tasks.labels import Learnt, learnt, plain_labels
from ray_lora.tasks.normalised import Normalised
from ray_lora.tasks.segmentation import masks
from ray_lora.tasks.segmentation.masks import IGNORED
from ray_lora.tasks.segmentation.objects import objects_of
from ray_lora.tasks.segmentation.options import FULL, SCORING, ImageSegmentationSpec, options_of
from ray_lora.tasks.segmentation.targets import indices_in, target
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.teaching import Taught, settle, teach
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

_PLAIN = "AutoModelForSemanticSegmentation"
_PATCH = 16  # a side, in pixels, as of other pictures
_WHITE = 255
_MOST_UNNAMED = 160  # labels that nobody names; ADE20K has 150

Learned = tuple[set[int], Taught]  # indices in a block's masks; its objects' categories, and rows that are wrong


class ImageSegmentation(Labelled):
    """A label for each pixel, from the plain class AutoModelForSemanticSegmentation."""

    spec_type: ClassVar[type[TaskSpec]] = ImageSegmentationSpec
    columns: ClassVar[Mapping[str, Column]] = {
        "image": Column(("image",), about="PNG or JPEG"),
        "mask": Column(("image", "objects"), "training", "PNG of class indices, or segmentation and category of each"),
    }
    input: ClassVar[str] = "image"
    pipeline: ClassVar[str] = "image-segmentation"
    full: ClassVar[Mapping[str, Json]] = FULL
    scoring: ClassVar[Mapping[str, Json]] = SCORING
    fits_head: ClassVar[bool] = False  # what it would be fitted on are all pixels' features of all rows
    metric: ClassVar[str] = "dice"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"dice": "max", "iou": "max"}
    peft_type: ClassVar[str | None] = None

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        super().__init__(spec)
        self._options = cast(ImageSegmentationSpec, spec)
        self._background = self._options.background if self._options.background in self.labels else None
        self.head = HeadSpec(_PLAIN, len(self.labels), self.labels)
        self._processor = _sized(processor, self._options.image_size)

    # ------------------------------------------------------------ of a block of rows, before anything is loaded

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> Learned:
        found: set[int] = set()
        words: list[tuple[int, Any]] = []
        for row, value in enumerate(_values(block, "mask")):
            try:
                if masks.is_objects(value):
                    words += [(row, category) for category in objects_of(value)[1]]
                else:
                    found |= set(indices_in(value, cast(ImageSegmentationSpec, spec))[1].ravel().tolist())
            except DataError:
                continue  # `check` names it
        return found, teach(words)

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[Any]) -> TaskSpec:
        options = cast(ImageSegmentationSpec, spec)
        every: list[Learned] = list(learned)
        indices: set[int] = set().union(*(found for found, _ in every))
        if options.masks == "indices" and options.ignore_index == IGNORED and indices == {0, IGNORED}:
            raise DataError(
                f"the training masks hold 0 and {IGNORED} alone, and {IGNORED} is a pixel that nobody knows, so "
                "nothing would be learned; write task.masks: binary where white is what is looked for"
            )
        if options.labels is not None:
            return spec
        ground = () if options.background is None or options.reduce_labels else (options.background,)
        taught = [words for _, words in every if words[0]]
        if taught:
            words = settle(taught, least=1)
            return spec.model_copy(update={"labels": Learnt((*ground, *learnt(set(words) - set(ground))))})
        used = indices - {IGNORED}
        last = max(used, default=0)
        if last == 0:
            raise DataError("the training masks show one class alone, index 0; at least two are needed")
        if last >= min(2 * len(used), _MOST_UNNAMED):
            raise DataError(
                f"the training masks hold {len(used)} different indices up to {last}, that is {last + 1} labels; grey "
                "levels look so, and so do indices that were scaled with blending. Save whole numbers from 0 without "
                "gaps and scale masks without blending (nearest), or say in task.labels what each number is"
            )
        return spec.model_copy(update={"labels": (*ground, *plain_labels(last + 1)[len(ground) :])})

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        """Every picture and mask is decoded: an end may be missing, and their sizes must agree."""
        options = cast(ImageSegmentationSpec, spec)
        for row, (image, mask) in enumerate(zip(_values(block, "image"), _values(block, "mask"), strict=True)):
            try:
                target(mask, open_picture(image).size, options)
            except DataError as error:
                yield row, str(error)

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        known = head.architecture == _PLAIN and head.num_labels > 1
        return ImageSegmentationSpec(labels=plain_labels(head.num_labels)) if known else None

    # ------------------------------------------------------------ of rows on their way through the model

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        """Each row's `pixel_values` [3, height, width] and, with a target, `mask`, uint8 [height, width], both in the
        input's pixels, and `truth`, the mask in the picture's own."""
        return [self._encode(row) for row in rows]

    def _encode(self, row: Row) -> Features:
        picture = open_picture(row["image"])
        pixels, inside = self._pixels(picture)
        features = Features(pixel_values=pixels, extent=list(picture.size), inside=list(inside))
        if row.get("mask") is not None:
            import torch

            truth = target(row["mask"], picture.size, self._options)
            features["mask"] = torch.from_numpy(masks.fitted(truth, inside, (pixels.shape[1], pixels.shape[2])))
            features["truth"] = masks.png(truth)
        return features

    def _pixels(self, picture: Image) -> tuple[Tensor, tuple[int, int]]:
        """The input of a picture, and the width and height that the picture takes of it."""
        if self._framed:
            framed: tuple[Tensor, tuple[int, int]] = self._processor(picture)
            return framed
        pixels: Tensor = self._processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return pixels, (pixels.shape[2], pixels.shape[1])

    @cached_property
    def longest(self) -> int:
        from PIL import Image

        height, width = self._pixels(Image.new("RGB", (64, 64)))[0].shape[1:]
        return -(-height // _PATCH) * -(-width // _PATCH)

    def size(self, features: Features) -> int:
        """Patches of 16 by 16 pixels."""
        return self.longest

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """pixel_values, [rows, 3, height, width]."""
        import torch

        return {"pixel_values": torch.stack([row["pixel_values"] for row in features]).float()}

    @property
    def _framed(self) -> bool:
        """Whether the base's processor is a `Frame`, of our own segmenters."""
        return hasattr(self._processor, "cell")

    @cached_property
    def _normalised(self) -> Normalised | None:
        return None if self._framed else Normalised.of(self._processor)

    @property
    def augments(self) -> frozenset[Needs]:
        """Nothing where it cannot be told what the processor does."""
        known = self._framed or (self._normalised is not None and self._normalised.colours)
        return frozenset({"pictures", "colours"} if known else ())

    def view(self, features: Features) -> Picture:
        """The part of the input that the picture takes, and its mask."""
        wide, high = features["inside"]
        pixels, mask = features["pixel_values"][:, :high, :wide], features["mask"][:high, :wide].long()
        if self._framed:
            red, green, blue = (value / _WHITE for value in self._processor.fill)
            return Picture(pixels.float() / _WHITE, (red, green, blue), mask=mask, unlabelled=IGNORED)
        assert self._normalised is not None  # else it augments nothing
        return Picture(self._normalised.shown(pixels), self._normalised.ground, mask=mask, unlabelled=IGNORED)

    def with_view(self, features: Features, view: Picture) -> Features:
        """`truth`, which only scores read, stays what it was."""
        assert view.mask is not None
        wide, high = features["inside"]
        pixels, mask = features["pixel_values"].clone(), features["mask"].clone()
        if self._framed:
            pixels[:, :high, :wide] = (view.pixels * _WHITE).round().clamp(0, _WHITE).to(pixels.dtype)
        else:
            assert self._normalised is not None
            pixels[:, :high, :wide] = self._normalised.of_shown(view.pixels).to(pixels.dtype)
        mask[:high, :wide] = view.mask.to(mask.dtype)
        return features | {"pixel_values": pixels, "mask": mask}

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """In float32 at least, of logits scaled to the input as transformers' classes scale them; a row is one term."""
        import torch
        import torch.nn.functional as F

        from ray_lora.tasks.segmentation.losses import picture_losses

        logits = outputs["logits"]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = torch.stack([row["mask"] for row in features]).long().to(logits.device)
        if logits.shape[2:] != targets.shape[1:]:
            logits = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=False)
        parts = self._options.loss
        losses = picture_losses(logits, targets, parts.cross_entropy, parts.dice)
        return losses, torch.ones_like(losses)

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        options_of(parameters)

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        """Each picture's labels with their masks; a score is the mean probability of the label's pixels."""
        from ray_lora.tasks.segmentation.answers import answer

        options = options_of(parameters)
        size = features[0]["pixel_values"].shape[1:]
        return [
            answer(logits, one | {"input": size}, self.labels, options)
            for logits, one in zip(outputs["logits"].detach().cpu(), features, strict=True)
        ]

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Over all pixels that somebody knows, of maps (`scoring`) or masks."""
        from ray_lora.tasks.segmentation.scoring import count, measure

        maps, _, truths = _pairs(predictions, features, self.labels)
        return measure(count(maps, truths, len(self.labels)), self.labels, self._background)

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        from ray_lora.tasks.segmentation.drawing import drawn

        return drawn(*_pairs(predictions, features, self.labels), features, self.labels, self._background)


def _values(block: pa.Table, column: str) -> Iterator[Any]:
    return (value.as_py() for chunk in block.column(column).chunks for value in chunk)


def _pairs(
    predictions: Sequence[Json], features: Sequence[Features], labels: Sequence[str]
) -> tuple[list[masks.Array], list[masks.Array], list[masks.Array]]:
    """Maps and probabilities of answers, and the truth."""
    from ray_lora.tasks.segmentation.answers import read_answer

    read = [read_answer(answer, labels, one["extent"]) for answer, one in zip(predictions, features, strict=True)]
    return [best for best, _ in read], [sure for _, sure in read], [masks.of_png(one["truth"]) for one in features]


def _sized(processor: Any, size: tuple[int, int] | None) -> Any:
    """The processor, at another size where the recipe says one.

    Raises:
        RecipeError: it is none of pictures, or gives pictures of all sizes.
    """
    if hasattr(processor, "cell"):
        cell = processor.cell
        if size is not None and any(side < 2 * cell or side % cell for side in size):
            raise RecipeError(f"task.image_size {list(size)} must be two multiples of {cell}, of {2 * cell} at least")
        return processor if size is None else replace(processor, size=size)
    if "segformer" not in type(processor).__name__.lower():
        raise RecipeError(
            "image-segmentation needs a SegFormer of transformers with its image processor, or a segmenter of "
            "ray_lora.bases.segmenters (docs/segmentation.md); this base is neither"
        )
    if not processor.do_resize:
        raise RecipeError("the base's image processor leaves pictures as large as they are; set its do_resize: true")
    if size is None:
        return processor
    import copy

    other = copy.copy(processor)
    other.size = type(processor.size)(height=size[0], width=size[1])
    return other
