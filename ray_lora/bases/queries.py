"""What a base of transformers that finds objects by queries says of its loss and its pictures: YOLOS, DETR, Table
Transformer and RT-DETR.

    tell_queries(processor, config)
    processor.queries                  # a Queries; None of another base

It knows configs and image processors, no files and no tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SEES_PADDING = ("yolos",)  # which takes no mask of its pixels
_MASKED = ("detr", "table-transformer")
_REFINES = ("rt_detr",)  # boxes from layer to layer; which takes no mask either
_EXACT = ("height", "width")
_LOSS = (
    "class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient", "giou_loss_coefficient", "eos_coefficient",
)  # fmt: skip
_REFINED = (
    "matcher_alpha", "matcher_gamma", "matcher_class_cost", "matcher_bbox_cost", "matcher_giou_cost", "use_focal_loss",
    "focal_loss_alpha", "focal_loss_gamma", "weight_loss_vfl", "weight_loss_bbox", "weight_loss_giou",
    "eos_coefficient",
)  # fmt: skip


@dataclass(frozen=True)
class Queries:
    """What training and answering need of it.

    Attributes:
        image_size: height and width into which pictures are scaled; None where the image processor does not say one.
        fills: whether its image processor stretches each picture to its size, whatever its shape.
        masked: whether the class is told which pixels are padding.
        refines: whether each layer of the decoder says boxes and classes.
        auxiliary_loss: whether each layer's answers are losses too.
        loss: the config's own numbers, under its names: what a query and an object cost when each object is given to
            one query, and what losses weigh.
    """

    image_size: tuple[int, int] | None
    fills: bool
    masked: bool
    refines: bool
    auxiliary_loss: bool
    loss: Mapping[str, float]


def queries_of(config: Any, processor: Any) -> Queries | None:
    """What a config and its image processor say; None of a base of another kind."""
    kind = getattr(config, "model_type", None)
    if kind not in (*_SEES_PADDING, *_MASKED, *_REFINES):
        return None
    told, refines = getattr(processor, "size", None), kind in _REFINES
    height, width = map(int, config.image_size) if kind in _SEES_PADDING else _size(told) or (0, 0)
    loss = {name: getattr(config, name) for name in (_REFINED if refines else _LOSS)}
    fills = _has(told, _EXACT) is not None
    return Queries(
        (height, width) if height else None, fills, kind in _MASKED, refines, bool(config.auxiliary_loss), loss
    )


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
