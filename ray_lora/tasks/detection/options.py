"""What a request may ask of a detector, and what evaluation asks.

options_of({"threshold": 0.3, "top_k": 5})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json

# As YOLOX's evaluation: unsure answers count too, and COCO's measure takes the best hundred of a class.
SCORING: Mapping[str, Json] = {"threshold": 0.01, "top_k": 300, "rounded": False}
FULL: Mapping[str, Json] = {"threshold": 0.0, "iou": 1.0, "top_k": None, "rounded": False}


@dataclass(frozen=True)
class Options:
    """Which objects are answered.

    Attributes:
        threshold: the least score; Hugging Face's pipeline has the same default.
        iou: of two boxes of one label that share more of their joint area, the surer one is answered; 1: both.
        top_k: at most so many a picture; None: all.
        rounded: whether corners are whole pixels, as the pipeline has them.
    """

    threshold: float = 0.5
    iou: float = 0.65
    top_k: int | None = 100
    rounded: bool = True


def options_of(parameters: Mapping[str, Json], iou: float = 0.65) -> Options:
    """RecipeError for a parameter that is not known, or is out of range.

    Args:
        iou: where nobody asks for another.
    """
    known = Options.__dataclass_fields__
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise RecipeError(f"parameters {unknown} are not known to this task; it takes {', '.join(known)}")
    options = Options(**{"iou": iou, **parameters})
    for name in ("threshold", "iou"):
        share = getattr(options, name)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise RecipeError(f"{name} {share!r} must be a number from 0 to 1")
    count = options.top_k
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise RecipeError(f"top_k {count!r} must be a whole number of at least 1, or null for all")
    if not isinstance(options.rounded, bool):
        raise RecipeError(f"rounded {options.rounded!r} must be true (whole pixels) or false")
    return options
