"""Pictures in rows: the bytes of a PNG, a JPEG or another kind in `KINDS`, base64 text of them, a PIL image, or
{"bytes": ..., "path": ...} as `datasets` writes it.

    open_picture(b"<PNG bytes>").size        # (width, height)

They are seen as `transformers.image_utils.load_image` sees them: upright, as the EXIF orientation says, and in RGB.
What they are is said by their bytes; a name's ending says nothing, and no path and no address is followed from here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray_lora.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's names. It knows others, of which one (EPS) is a program that another program would run.
KINDS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "PCX")
_WHAT = "give PNG or JPEG bytes, or base64 text of them"
_WIDE = {"I": "whole numbers of 16 bits or more", "F": "fractions"}


def open_picture(image: Any) -> Image:
    """An upright RGB PIL image from encoded bytes, base64 text of them, a mapping that holds either, or a PIL image.

    A palette, CMYK and grey become RGB; alpha is dropped, as the pipeline of Hugging Face drops it; of an animation the
    first picture is seen; of colours of 16 bits the upper eight.

    Raises:
        DataError: it cannot be read to its end, is of another kind, is too large, or would be cut to 8 bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    called = "an image"
    if isinstance(image, Mapping):
        path = image.get("path")
        called = f"an image ({path!r})" if isinstance(path, str) and path else called
        if image.get("bytes") is None:
            raise DataError(f"an image has no bytes, only the path {path!r}; write its bytes beside the path; {_WHAT}")
        image = image["bytes"]
    if not isinstance(image, (str, bytes, bytearray, memoryview, Image.Image)):
        raise DataError(f"{called} is a {type(image).__name__}; {_WHAT}")
    try:
        opened = image if isinstance(image, Image.Image) else _opened(image)
        if opened.format is not None and opened.format not in KINDS:
            raise ValueError(f"it is {opened.format}, which is not read")
        if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"{opened.width} by {opened.height} pixels; scale it down")
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are {_WIDE[opened.mode[0]]} and would be cut to 8 bits; scale it to 8 bits")
        upright = ImageOps.exif_transpose(opened)
        if upright.mode == "P":  # RGB drops it, and Pillow would warn
            upright.info.pop("transparency", None)
        return upright.convert("RGB")
    except UnidentifiedImageError:  # its message is an address in memory
        raise DataError(
            f"{called} cannot be read (it is no picture, or one whose beginning is broken); {_WHAT}"
        ) from None
    except Exception as error:  # Pillow's decoders raise errors of many kinds on what is broken
        raise DataError(f"{called} cannot be read ({error}); {_WHAT}") from None


def size_of(image: Any) -> tuple[int, int]:
    """Width and height of what `open_picture` opens, as its file has them; nothing is decoded.

    Raises:
        DataError: it is no picture.
    """
    from PIL import Image

    held = image.get("bytes") if isinstance(image, Mapping) else image
    try:
        width, height = (held if isinstance(held, Image.Image) else _opened(held)).size  # type: ignore[arg-type]
    except Exception as error:  # Pillow raises errors of many kinds on what is broken
        raise DataError(f"an image cannot be read ({type(error).__name__}); {_WHAT}") from None
    return width, height


def _opened(image: str | bytes | bytearray | memoryview) -> Image:
    import base64

    from PIL import Image

    data = base64.b64decode(image, validate=True) if isinstance(image, str) else image
    if len(data) == 0:
        raise ValueError("it is empty, 0 bytes")
    return Image.open(io.BytesIO(data))
