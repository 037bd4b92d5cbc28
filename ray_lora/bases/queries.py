"""What a base of transformers that finds objects by queries says of its loss and its pictures: YOLOS, DETR and Table
Transformer.

    tell_queries(processor, config)
    processor.queries                  # a Queries; None of another base

It knows configs and image processors, no files and no tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SEES_PADDING = ("yolos",)  # which takes no mask of its pixels
_MASKED = ("detr", "table-transformer")
_EXACT = ("height", "width")
_LOSS = (
    "class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient", "giou_loss_coefficient", "eos_coefficient",
    "auxiliary_loss",
)  # fmt: skip


@dataclass(frozen=True)
class Queries:
    """A config's own numbers, under its names.

    Attributes:
        image_size: height and width into which pictures are scaled; None where the image processor does not say one.
        fills: whether its image processor stretches each picture to its size, whatever its shape.
        masked: whether the class is told which pixels are padding.
        class_cost, bbox_cost, giou_cost: of a query and an object, when each object is given to one query.
        bbox_loss_coefficient, giou_loss_coefficient: what a box's losses weigh beside the class's.
        eos_coefficient: what a query weighs that has no object.
        auxiliary_loss: whether each layer's answers are losses too.
    """

    image_size: tuple[int, int] | None
    fills: bool
    masked: bool
    class_cost: float
    bbox_cost: float
    giou_cost: float
    bbox_loss_coefficient: float
    giou_loss_coefficient: float
    eos_coefficient: float
    auxiliary_loss: bool


def queries_of(config: Any, processor: Any) -> Queries | None:
    """What a config and its image processor say; None of a base of another kind."""
    kind = getattr(config, "model_type", None)
    if kind not in (*_SEES_PADDING, *_MASKED):
        return None
    masked = kind in _MASKED
    told = getattr(processor, "size", None)
    height, width = (_size(told) or (0, 0)) if masked else map(int, config.image_size)
    fills = _has(told, _EXACT) is not None
    loss = {name: getattr(config, name) for name in _LOSS}
    return Queries((height, width) if height else None, fills, masked, **loss)


def _size(told: Any) -> tuple[int, int] | None:
    """The height and width that hold every picture of a lying format as a DETR's image processor scales it."""
    found = (_has(told, names) for names in (_EXACT, ("max_height", "max_width"), ("shortest_edge", "longest_edge")))
    return next((size for size in found if size is not None), None)


def _has(told: Any, names: tuple[str, str]) -> tuple[int, int] | None:
    height, width = (getattr(told, name, None) for name in names)
    return (int(height), int(width)) if height and width else None


def tell_queries(processor: Any, config: Any) -> None:
    """Tell an image processor of its base's queries, as `queries`, and of its kind, as `base_type`. A tokenizer is left
    alone."""
    if processor is not None and not hasattr(processor, "pad_token_id"):
        processor.queries = queries_of(config, processor)
        processor.base_type = str(getattr(config, "model_type", ""))
