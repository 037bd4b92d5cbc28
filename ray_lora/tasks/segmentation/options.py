"""What a recipe says of a segmenter, what a request may ask of it, and what evaluation asks.

options_of({"threshold": 0.3})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, Spec
from ray_lora.tasks.classification import ClassificationSpec
from ray_lora.tasks.segmentation.masks import IGNORED

SCORING: Mapping[str, Json] = {"form": "map"}
FULL: Mapping[str, Json] = {"threshold": 0.0}


class LossSpec(Spec):
    """What a picture's loss is the sum of, each times its weight."""

    cross_entropy: float = Field(default=1.0, ge=0)
    dice: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> LossSpec:
        if self.cross_entropy + self.dice == 0:
            raise ValueError("loss has no part: cross_entropy and dice are both 0")
        return self


class ImageSegmentationSpec(ClassificationSpec):
    """`labels: null`: those of the objects' categories, or, of masks, LABEL_1, LABEL_2, … behind the background.

    Attributes:
        labels: by the index that masks have.
        background: the label of what belongs to nothing, which scores are not the mean of; it need not be there.
        masks: `indices` of classes, or `binary`: 0 is the first label, and any other number the second.
        ignore_index: the number of pixels that nobody knows, transformers' `semantic_loss_ignore_index`.
        reduce_labels: 0 is ignored and all others count from 0, as ADE20K has it (transformers' `do_reduce_labels`).
        image_size: height and width at which the base reads pictures; null: as its folder says.
    """

    type: Literal["image-segmentation"] = "image-segmentation"
    background: str | None = "background"
    masks: Literal["indices", "binary"] = "indices"
    ignore_index: int = Field(default=IGNORED, ge=0, le=IGNORED)
    reduce_labels: bool = False
    image_size: tuple[int, int] | None = None
    loss: LossSpec = LossSpec()

    @field_validator("labels")
    @classmethod
    def _few(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and len(labels) > IGNORED:
            raise ValueError(f"{len(labels)} labels are more than {IGNORED}, which a mask of 8 bits can tell apart")
        return labels

    @model_validator(mode="after")
    def _two(self) -> ImageSegmentationSpec:
        if self.masks == "binary" and self.labels is not None and len(self.labels) != 2:
            raise ValueError(f"masks: binary have two labels, and {len(self.labels)} are given")
        return self


@dataclass(frozen=True)
class Options:
    """What is answered.

    Attributes:
        subtask: Hugging Face's pipeline knows more of them; here every pixel has one label.
        threshold: the least score of a label, the mean probability of its pixels.
        form: `masks` as the pipeline has them, or one `map` of all labels' indices.
    """

    subtask: str = "semantic"
    threshold: float = 0.0
    form: str = "masks"


def options_of(parameters: Mapping[str, Json]) -> Options:
    """RecipeError for a parameter that is not known, or is out of range."""
    known = Options.__dataclass_fields__
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise RecipeError(f"parameters {unknown} are not known to this task; it takes {', '.join(known)}")
    given: dict[str, Any] = {name: value for name, value in parameters.items() if not _unsaid(name, value)}
    options = Options(**given)
    if options.subtask != "semantic":
        raise RecipeError(f"subtask {options.subtask!r} is not answered here: only 'semantic', a label for each pixel")
    share = options.threshold
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise RecipeError(f"threshold {share!r} must be a number from 0 to 1")
    if options.form not in ("masks", "map"):
        raise RecipeError(f"form {options.form!r} must be 'masks' (one for each label) or 'map' (one of all labels)")
    return options


def _unsaid(name: str, value: Json) -> bool:
    """A subtask of null is Hugging Face's word for the one that there is."""
    return name == "subtask" and value is None
