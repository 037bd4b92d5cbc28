"""Pictures in rows: PNG or JPEG bytes, base64 text of them, a PIL image, or {"bytes": ..., "path": ...} as `datasets`
writes it.

    open_picture(b"<PNG bytes>").size        # (width, height)

They are seen as `transformers.image_utils.load_image` sees them: upright, as the EXIF orientation says, and in RGB.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray_lora.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_WHAT = "give PNG or JPEG bytes, or base64 text of them"
_WIDE = {"I": "whole numbers of 16 bits or more", "F": "fractions"}


def open_picture(image: Any) -> Image:
    """An upright RGB PIL image from encoded bytes, base64 text of them, a mapping that holds either, or a PIL image.

    Raises:
        DataError: it cannot be read, or would lose bits.
    """
    from PIL import Image, ImageOps

    if isinstance(image, Mapping):
        if image.get("bytes") is None:
            path = image.get("path")
            raise DataError(f"an image has no bytes, only the path {path!r}; write its bytes beside the path; {_WHAT}")
        image = image["bytes"]
    if not isinstance(image, (str, bytes, bytearray, memoryview, Image.Image)):
        raise DataError(f"an image is a {type(image).__name__}; {_WHAT}")
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(io.BytesIO(_decoded(image)))
        if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"{opened.width} by {opened.height} pixels; scale it down")
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are {_WIDE[opened.mode[0]]} and would be cut to 8 bits; scale it to 8 bits")
        upright = ImageOps.exif_transpose(opened)
        if upright.mode == "P":  # RGB drops it, and Pillow would warn
            upright.info.pop("transparency", None)
        return upright.convert("RGB")
    except Exception as error:  # Pillow's decoders raise errors of many kinds on what is broken
        raise DataError(f"an image cannot be read ({error}); {_WHAT}") from None


def _decoded(image: str | bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    import base64

    return base64.b64decode(image, validate=True) if isinstance(image, str) else image
