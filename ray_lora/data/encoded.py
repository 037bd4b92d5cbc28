"""Encoded rows in an Arrow file, memory-mapped: what `task.encode` gave, as it gave it, row by row.

    write_rows(path, [(features, size), ...])          # appears whole or not at all
    file = EncodedFile(path)
    file[3], file.sizes[3], file.cut[3]                # {"input_ids": [...], "label": 1}, tokens, why it was cut

A row is one value of the file's column, as MessagePack writes it: texts, numbers, bytes, tensors, lists and mappings.
It knows rows' values, not what they mean.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_lora.errors import DataError
from ray_lora.tasks import Features

_SCHEMA = pa.schema([("row", pa.binary()), ("size", pa.int32()), ("cut", pa.string())])
_BATCH = 1024  # rows in one of a file's batches; all but the last have as many
_TENSOR, _ARRAY, _TUPLE = 1, 2, 3  # MessagePack's types of our own


class UnkeptError(DataError):
    """Rows that would not come back as they are."""


def write_rows(path: Path, rows: Iterable[tuple[Features, int]]) -> int:
    """Write encoded rows, each with what `task.size` gives for it; returns how many there are.

    Raises:
        UnkeptError: a row holds what would come back otherwise; nothing is written.
        OSError: the disk is full, or not to be written.
    """
    fresh, left, written = path.with_name(f".{path.name}.{uuid.uuid4().hex}"), iter(rows), 0
    try:
        with fresh.open("wb") as file:
            with pa.ipc.new_file(file, _SCHEMA) as writer:
                while batch := list(islice(left, _BATCH)):
                    writer.write_batch(_batch(batch))
                    written += len(batch)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave a whole name over half the bytes
        fresh.replace(path)
        return written
    finally:
        fresh.unlink(missing_ok=True)


class EncodedFile:
    """The rows of a file that `write_rows` wrote, read from its pages when they are asked for.

    Attributes:
        sizes: of each row, what `task.size` gives.
        cut: of each row, why it is cut; null for one that is whole.

    Raises:
        OSError: it is not there, or not whole.
    """

    def __init__(self, path: Path) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except pa.ArrowInvalid as error:
            raise OSError(f"{path} is not whole: {error}") from None
        if reader.schema != _SCHEMA:
            raise OSError(f"{path} is of another kind: {reader.schema}")
        self._rows = [_views(batch.column("row")) for batch in batches]
        self._sizes, self._cut = ([batch.column(name) for batch in batches] for name in ("size", "cut"))

    def __len__(self) -> int:
        return sum(map(len, self._sizes))

    def __getitem__(self, row: int) -> Features:
        batch, at = divmod(row, _BATCH)
        offsets, data = self._rows[batch]
        found: Features = _unpack(data[offsets[at] : offsets[at + 1]])
        return found

    @property
    def sizes(self) -> NDArray[np.int32]:
        return np.concatenate([sizes.to_numpy() for sizes in self._sizes] or [np.zeros(0, np.int32)])

    @property
    def cut(self) -> pa.ChunkedArray:
        return pa.chunked_array(self._cut, pa.string())


def _batch(rows: Sequence[tuple[Features, int]]) -> pa.RecordBatch:
    try:
        packed = [_pack(row) for row, _ in rows]
    except (TypeError, ValueError, OverflowError) as error:
        raise UnkeptError(f"an encoded row cannot be kept in a file: {error}") from None
    columns = [packed, [size for _, size in rows], [row.get("cut") for row, _ in rows]]
    return pa.RecordBatch.from_arrays(
        [pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)], schema=_SCHEMA
    )


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, default=_packed, strict_types=True)
    return packed


def _packed(value: Any) -> msgpack.ExtType:
    """Tuples, and tensors and arrays of numbers as their bytes; TypeError for all else."""
    if type(value) is tuple:
        return msgpack.ExtType(_TUPLE, _pack(list(value)))
    if not (hasattr(value, "numpy") or isinstance(value, np.ndarray)):
        raise TypeError(f"it holds a {type(value).__name__}; rows hold texts, numbers, tensors, lists and mappings")
    array = value.detach().cpu().contiguous().numpy() if hasattr(value, "numpy") else np.ascontiguousarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"it holds an array of {array.dtype}; give numbers")
    code = _TENSOR if hasattr(value, "numpy") else _ARRAY
    return msgpack.ExtType(code, _pack([array.dtype.str, list(array.shape), array.tobytes()]))


def _unpack(data: bytes | memoryview) -> Any:
    return msgpack.unpackb(data, ext_hook=_unpacked)


def _unpacked(code: int, data: bytes) -> Any:
    value = _unpack(data)
    if code == _TUPLE:
        return tuple(value)
    dtype, shape, content = value
    array = np.frombuffer(content, dtype).reshape(shape).copy()
    if code == _ARRAY:
        return array
    import torch

    return torch.from_numpy(array)


def _views(column: pa.BinaryArray) -> tuple[NDArray[np.int32], memoryview]:
    """Where each value begins and the last one ends, and all values' bytes."""
    _, offsets, data = column.buffers()
    begins = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return begins, memoryview(data) if data is not None else memoryview(b"")
