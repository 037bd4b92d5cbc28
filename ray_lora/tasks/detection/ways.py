"""Which way a base is detected with, by its processor.

way_of(processor, labels)        # RecipeError for a base that has none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_lora.errors import RecipeError
from ray_lora.tasks.detection.way import Way


def way_of(processor: Any, labels: Sequence[str]) -> Way:
    """The way of a base with this processor.

    Raises:
        RecipeError: it is no base that finds objects, or one whose loss is not of its own row alone.
    """
    if hasattr(processor, "strides"):
        from ray_lora.tasks.detection.anchored import Anchored

        return Anchored(processor)
    if (queries := getattr(processor, "queries", None)) is not None:
        from ray_lora.tasks.detection.queried import Queried
        from ray_lora.tasks.detection.refined import Refined

        return (Refined if queries.refines else Queried)(processor, queries, labels)
    kind = getattr(processor, "base_type", "")
    raise RecipeError(
        "object-detection needs a YOLOX as its base, such as yolox-tiny, or a YOLOS, DETR, Table "
        "Transformer or RT-DETR of transformers; this base is " + _REFUSED.get(kind, f"a {kind!r}" if kind else "none")
    )


_REFUSED: Mapping[str, str] = {
    "rt_detr_v2": "an RT-DETR v2, whose layers share some of what tells boxes and was not compared; RT-DETR was",
}
