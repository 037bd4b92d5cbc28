"""Pictures as people have them: every mode and kind that Pillow writes is seen as transformers sees it, or refused."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from ray_lora.errors import DataError
from ray_lora.tasks.images import KINDS, open_picture

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")
WRITTEN = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA")


def noise(mode: str, width: int, height: int, seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": "uint16", "I": "int32", "F": "float32"}[mode]
        return Image.fromarray((draw.random((height, width)) * 60_000).astype(kind))
    return Image.fromarray(draw.integers(0, 255, (height, width, 4), dtype=np.uint8), "RGBA").convert(mode)


def written(image: Image.Image, kind: str, **options: Any) -> bytes | None:
    """The file's bytes; None where Pillow does not write such pixels in such a file."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError, KeyError):
        return None
    return buffer.getvalue()


def attempt(given_as: Any) -> tuple[np.ndarray | None, str]:
    """The pixels, or what is said."""
    try:
        return np.asarray(open_picture(given_as)), ""
    except DataError as error:
        return None, str(error)


def seen(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(load_image(Image.open(io.BytesIO(data))))


@given(
    mode=st.sampled_from(MODES),
    kind=st.sampled_from(WRITTEN),
    orientation=st.integers(1, 8),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_every_kind_is_seen_as_transformers_sees_it_or_refused(
    mode: str, kind: str, orientation: int, size: tuple[int, int], seed: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = written(noise(mode, *size, seed), kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
    if data is None:
        return
    wide = Image.open(io.BytesIO(data)).mode.startswith(("I", "F"))
    if wide:
        with pytest.raises(DataError, match="would be cut to 8 bits"):
            open_picture({"bytes": data, "path": "a.png"})
        return
    found = open_picture({"bytes": data, "path": "a.png"})  # what a name's ending says counts nothing
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), seen(data))
    turned = orientation > 4 and kind in ("PNG", "JPEG", "WEBP")
    assert found.size == (size[::-1] if turned else size)


@given(kind=st.sampled_from(WRITTEN), share=st.floats(0, 1), at=st.floats(0, 1), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_what_is_torn_is_whole_or_refused_by_name(kind: str, share: float, at: float, byte: int) -> None:
    """A file that ends too early gives the whole picture (only its end mark was missing) or an error; a flipped byte
    gives a picture or an error of ours."""
    data = written(noise("RGB", 24, 17, 1), kind)
    assert data is not None
    found, said = attempt({"bytes": data[: int(share * len(data))], "path": "torn.png"})
    assert np.array_equal(found, seen(data)) if found is not None else said.startswith("an image ('torn.png') cannot")
    place = int(at * (len(data) - 1))
    flipped = data[:place] + bytes([byte]) + data[place + 1 :]
    attempt(flipped)


def test_an_animation_is_its_first_picture() -> None:
    first, second = (noise("RGB", 8, 8, seed).convert("P") for seed in (1, 2))
    for kind in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        first.save(buffer, kind, save_all=True, append_images=[second], lossless=True)
        assert Image.open(io.BytesIO(buffer.getvalue())).n_frames == 2
        assert np.array_equal(np.asarray(open_picture(buffer.getvalue())), np.asarray(first.convert("RGB")))


def test_colours_of_sixteen_bits_are_their_upper_eight() -> None:
    """A PNG of 16 bits a colour, written by hand, since Pillow does not write one."""
    import struct
    import zlib

    pixels = np.random.default_rng(0).integers(0, 65535, (4, 5, 3), dtype=np.uint16)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    assert np.array_equal(np.asarray(open_picture(png)), (pixels >> 8).astype(np.uint8))


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty, 0 bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no picture"),
        (b"http://example.org/a.png", "it is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "it is EPS, which is not read"),
        (bomb(), "exceeds limit"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_name(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"an image \('folder/a.png'\) cannot be read \(.*{said}"):
        open_picture({"bytes": data, "path": "folder/a.png"})


@pytest.mark.parametrize("address", ["https://example.org/a.png", "/etc/hostname", "a.png"])
def test_no_address_and_no_path_is_followed(address: str) -> None:
    for given_as in (address, {"path": address}, {"bytes": None, "path": address}, {"bytes": address}):
        with pytest.raises(DataError):
            open_picture(given_as)


def test_kinds_are_pillows() -> None:
    Image.init()
    assert {*KINDS} <= {*Image.OPEN, "DIB", "MPO"}
