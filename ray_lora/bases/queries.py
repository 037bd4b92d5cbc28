"""What a base of transformers that finds objects by queries says of its loss and its pictures: YOLOS.

    tell_queries(processor, config)
    processor.queries                  # a Queries; None of another base

It knows configs and image processors, no files and no tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Queries:
    """A config's own numbers, under its names.

    Attributes:
        image_size: height and width of the pictures that the base was trained on.
        class_cost, bbox_cost, giou_cost: of a query and an object, when each object is given to one query.
        bbox_loss_coefficient, giou_loss_coefficient: what a box's losses weigh beside the class's.
        eos_coefficient: what a query weighs that has no object.
        auxiliary_loss: whether each layer's answers are losses too.
    """

    image_size: tuple[int, int]
    class_cost: float
    bbox_cost: float
    giou_cost: float
    bbox_loss_coefficient: float
    giou_loss_coefficient: float
    eos_coefficient: float
    auxiliary_loss: bool


def queries_of(config: Any) -> Queries | None:
    """What a YOLOS's config says; None of another one."""
    if getattr(config, "model_type", None) != "yolos":
        return None
    told = {field.name: getattr(config, field.name) for field in fields(Queries)}
    height, width = told.pop("image_size")
    return Queries((int(height), int(width)), **told)


def tell_queries(processor: Any, config: Any) -> None:
    """Tell an image processor of its base's queries, as `queries`, and of its kind, as `base_type`. A tokenizer is left
    alone."""
    if processor is not None and not hasattr(processor, "pad_token_id"):
        processor.queries = queries_of(config)
        processor.base_type = str(getattr(config, "model_type", ""))
