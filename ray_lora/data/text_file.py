"""Text files as bytes: that they are UTF-8, without a byte order mark; else where they stop being so.

    data = utf8(file.read_buffer(), "train.csv", csv_place)      # DataError: train.csv, row 7 is not UTF-8 ...

It knows bytes and lines, no tables.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from ray_lora.errors import DataError

Place = Callable[[bytes], str]  # where a file's beginning ends, for people: "row 7"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PIECE = 1 << 22  # bytes looked at at once


def utf8(buffer: Any, where: str, place: Place) -> Any:
    """A file's pyarrow.Buffer without its byte order mark.

    Raises:
        DataError: it is not UTF-8, or holds NUL characters; the message says where.
    """
    if buffer[:2].to_pybytes() in _UTF16:
        raise DataError(f"{where} is UTF-16; save the file as UTF-8")
    if buffer[:3].to_pybytes() == codecs.BOM_UTF8:
        buffer = buffer[3:]
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(buffer).cast("B")
    for start in range(0, len(view), _PIECE):
        piece = bytes(view[start : start + _PIECE])
        if (nul := piece.find(b"\0")) >= 0:
            at = place(bytes(view[: start + nul]))
            raise DataError(f"{where}, {at} holds a NUL character; save the file as UTF-8 text (is it UTF-16?)")
        waiting = len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=start + _PIECE >= len(view))
        except UnicodeDecodeError as error:
            end = start - waiting + error.start
            raise DataError(
                f"{where}, {place(bytes(view[:end]))} is not UTF-8 (byte 0x{view[end]:02x}); save the file as UTF-8"
            ) from None
    return buffer if len(buffer) else pa.py_buffer(b"")
