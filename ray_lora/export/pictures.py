"""What a runner must know of a base and an adapter to read pictures, and to answer labels, boxes or masks.

It knows processors and tasks: no graphs.
"""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import numpy as np

from ray_lora.bases.base import Base
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json
from ray_lora.tasks import Row

_NETWORKS = ("unet", "erfnet")
_BILINEAR = 2  # Pillow's number
_UNCROPPED = 384  # pixels, from which ConvNext's processor leaves nothing out


def of_processor(base: Base) -> dict[str, Json]:
    """What the common image processors do to a picture's colours; the comparison says where one does more."""
    told = base.processor
    return {
        "inputs": ["pixel_values"],
        "padding": {},
        "resample": int(told.resample),
        "scale": told.rescale_factor if told.do_rescale else 1.0,
        "mean": list(told.image_mean) if told.do_normalize else [0.0],
        "std": list(told.image_std) if told.do_normalize else [1.0],
    }


def sees(task: Any, base: Base) -> dict[str, Json]:
    """Sizes as the processor has them, or as the adapter was trained on others."""
    size = dict(base.processor.size)
    side = getattr(task.spec, "image_size", None)
    edge = side or size.get("shortest_edge")
    crop = None
    if "shortest_edge" in size:
        share = getattr(base.processor, "crop_pct", None)
        if share is None or edge is None:
            raise RecipeError(
                f"the image processor of base {base.id!r}, a {type(base.processor).__name__}, was not compared with "
                "what runs without transformers; supported are those that scale to height and width, and ConvNext's"
            )
        crop = int(edge / share) if edge < _UNCROPPED else None
    height, width = (edge, edge) if "shortest_edge" in size or side else (size["height"], size["width"])
    return {"labels": list(task.labels), "size": [height, width], "crop": crop}


def drawn_pictures(base: Base, task: Any) -> list[Row]:
    """Of noise, wide, high and square."""
    from PIL import Image

    draw = np.random.default_rng(0)
    rows: list[Row] = []
    for height, width in ((40, 64), (64, 41), (50, 50), (300, 233)):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue()})
    return rows


# -------------------------------------------------------------------- boxes


def boxed(base: Base) -> dict[str, Json]:
    """How a YOLOX's pictures lie in its input."""
    told = base.processor
    return {
        "inputs": ["pixel_values"],
        "padding": {},
        "size": list(told.size),
        "strides": list(told.strides),
        "ground": told.ground,
        "channel_order": told.channel_order,
    }


def of_boxes(task: Any, base: Base) -> dict[str, Json]:
    """Labels, and what is answered where a request asks for nothing."""
    from ray_lora.tasks.detection.options import Options

    told = asdict(Options())
    return {"labels": list(task.labels), **{name: told[name] for name in ("threshold", "iou", "top_k")}}


# -------------------------------------------------------------------- masks


def framed(base: Base) -> dict[str, Json]:
    """Of a segmenter of ours what lies around a picture; of SegFormer what its processor does to colours.

    Raises:
        RecipeError: the network is MONAI's.
    """
    told = base.processor
    if not hasattr(told, "cell"):
        return {**of_processor(base), "fill": None}
    kind = base.config.network.kind
    if kind not in _NETWORKS:
        raise RecipeError(
            f"export of image-segmentation on a segmenter of the kind {kind!r} was not compared with its plain class; "
            f"supported: {', '.join(_NETWORKS)}"
        )
    return {"inputs": ["pixel_values"], "padding": {}, "fill": list(told.fill), "resample": _BILINEAR}


def of_masks(task: Any, base: Base) -> dict[str, Json]:
    """Labels, and the size at which the adapter reads pictures."""
    told = task.spec.image_size or base.processor.size
    size = told if isinstance(told, tuple) else (told["height"], told["width"])
    return {"labels": list(task.labels), "size": list(size)}
