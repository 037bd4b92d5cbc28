"""Masks of a picture: which class each pixel shows, as whole numbers from 0, and IGNORED where nobody says.

    indices_of(b"<PNG bytes>")                              # uint8 [height, width], as the file has them
    drawn_objects(objects, (640, 480), labels, outside=0)   # of polygons and run lengths

A mask is a PNG of class indices, grey or with a palette, or COCO's objects ({"segmentation", "category"}). It knows
values and arrays, no tasks.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_lora.errors import DataError
from ray_lora.tasks.labels import label_index
from ray_lora.tasks.rows import shown
from ray_lora.tasks.segmentation.objects import area_of, objects_of

Array = np.ndarray[Any, np.dtype[np.uint8]]

IGNORED = 255  # transformers' semantic_loss_ignore_index
_WHAT = "give a PNG whose pixels are class indices (grey or palette), or {'segmentation': [...], 'category': [...]}"
_KINDS = ("PNG", "TIFF", "BMP", "JPEG")  # Pillow's names; the last is refused by its own
_INDEXED = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")


def is_objects(value: Any) -> bool:
    """Whether a row's mask is given as objects."""
    return isinstance(value, list) or (isinstance(value, Mapping) and "bytes" not in value and "path" not in value)


def indices_of(mask: Any) -> Array:
    """A PNG's class indices, uint8 [height, width], upright as its picture is.

    Raises:
        DataError: it cannot be read, or its pixels are no indices below 256.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    called = "a mask"
    if isinstance(mask, Mapping):
        path = mask.get("path")
        called = f"a mask ({path!r})" if isinstance(path, str) and path else called
        if mask.get("bytes") is None:
            raise DataError(f"a mask has no bytes, only the path {path!r}; write its bytes beside the path; {_WHAT}")
        mask = mask["bytes"]
    if not isinstance(mask, (str, bytes, bytearray, memoryview, Image.Image)):
        raise DataError(f"{called} is a {type(mask).__name__}; {_WHAT}")
    try:
        opened = mask if isinstance(mask, Image.Image) else _opened(mask)
        if opened.format == "JPEG":
            raise ValueError("it is a JPEG, which changes numbers; save it as PNG")
        if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"{opened.width} by {opened.height} pixels; scale it down, and its picture")
        if getattr(opened, "n_frames", 1) > 1:
            raise ValueError("it has several frames")
        if opened.mode not in _INDEXED:
            raise ValueError(f"its pixels are colours ({opened.mode}), not class indices; save it with a palette")
        found = np.asarray(ImageOps.exif_transpose(opened))
        if found.max(initial=0) > IGNORED or found.min(initial=0) < 0:
            raise ValueError(f"its pixels go from {found.min()} to {found.max()}; indices are below 256")
    except UnidentifiedImageError:  # its message is an address in memory
        raise DataError(f"{called} cannot be read (it is no PNG, or one whose beginning is broken); {_WHAT}") from None
    except Exception as error:  # Pillow's decoders raise errors of many kinds on what is broken
        raise DataError(f"{called} cannot be read ({error}); {_WHAT}") from None
    return found.astype(np.uint8)


def _opened(mask: str | bytes | bytearray | memoryview) -> Any:
    from PIL import Image

    data = base64.b64decode(mask, validate=True) if isinstance(mask, str) else mask
    return Image.open(io.BytesIO(data), formats=_KINDS)


def drawn_objects(value: Any, size: tuple[int, int], labels: Sequence[str], outside: int) -> Array:
    """Objects drawn one over the other, in their order, uint8 [height, width].

    Args:
        size: width and height of the picture.
        outside: of pixels in no object.

    Raises:
        DataError: they are no objects, lead out of the picture, or have a category that is no label.
    """
    found = np.full((size[1], size[0]), outside, np.uint8)
    for segmentation, category in zip(*objects_of(value), strict=True):
        found[area_of(segmentation, size)] = label_index(category, labels)
    return found


def of_other_size(mask: Array, size: tuple[int, int]) -> str | None:
    """What to say of a mask that has not its picture's width and height."""
    height, width = mask.shape
    if (width, height) == size:
        return None
    return (
        f"a mask of {width} x {height} pixels on a picture of {size[0]} x {size[1]}; a mask has its picture's size, "
        "upright: scale it without blending (nearest)"
    )


def unknown(mask: Array, labels: Sequence[str]) -> str | None:
    """What to say of a mask with an index that is no label's."""
    odd = np.unique(mask[(mask != IGNORED) & (mask >= len(labels))])
    if not odd.size:
        return None
    return (
        f"the mask has index {', '.join(map(str, odd[:5].tolist()))}, and the labels {shown(list(labels))} are 0 to "
        f"{len(labels) - 1}; add labels, or write {IGNORED} where a pixel is to be ignored"
    )


def png(values: Array) -> bytes:
    """A grey PNG of these numbers."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def of_png(data: bytes) -> Array:
    """What `png` wrote."""
    from PIL import Image

    return np.array(Image.open(io.BytesIO(data)))


def fitted(mask: Array, inside: tuple[int, int], size: tuple[int, int]) -> Array:
    """A mask as the network's input has its picture: scaled without blending, IGNORED in the margin.

    Args:
        inside: width and height that the picture takes. size: height and width of the input.
    """
    from PIL import Image

    scaled = np.asarray(Image.fromarray(mask).resize(inside, Image.Resampling.NEAREST))
    found = np.full(size, IGNORED, np.uint8)
    found[: inside[1], : inside[0]] = scaled
    return found
