"""Encoded rows in an Arrow file, memory-mapped: what `task.encode` gave, as it gave it, row by row.

    write_rows(path, [(features, size), ...])          # appears whole or not at all
    file = EncodedFile(path)
    file[3], file.sizes[3], file.cut                   # {"input_ids": [...], "label": 1}, tokens, rows that were cut

A row is one value of the file's column, as MessagePack writes it: texts, numbers, bytes, tensors, lists and mappings.
Of the file's pages only those are read that hold what is asked for: to open millions of rows costs as little as to open
a few. It knows rows' values, not what they mean.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
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
from ray_lora.tasks.rows import count_cut

_SCHEMA = pa.schema([("row", pa.binary()), ("size", pa.int32())])
_BATCH = 1024  # rows in one of a file's batches; all but the last have as many. A batch behind them sums them up
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
    cut = Counter[str]()
    try:
        with fresh.open("wb") as file:
            with pa.ipc.new_file(file, _SCHEMA) as writer:
                while batch := list(islice(left, _BATCH)):
                    writer.write_batch(_batch(batch))
                    written += len(batch)
                    cut += count_cut(row for row, _ in batch)
                writer.write_batch(_batch([({"rows": written, "cut": dict(cut)}, 0)]))
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave a whole name over half the bytes
        fresh.replace(path)
        return written
    finally:
        fresh.unlink(missing_ok=True)


class EncodedFile:
    """The rows of a file that `write_rows` wrote, read from its pages when they are asked for.

    Attributes:
        cut: how many rows are cut, by why.

    Raises:
        OSError: it is not there, or not whole.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if self._reader.schema != _SCHEMA:
                raise OSError(f"{path} is of another kind: {self._reader.schema}")
            last = self._reader.get_batch(self._reader.num_record_batches - 1)
            told = _unpack(last.column("row")[0].as_py())
            self._count: int = told["rows"]
            self.cut = Counter[str](told["cut"])
        except (pa.ArrowInvalid, ValueError, LookupError, TypeError) as error:
            raise OSError(f"{path} is not whole: {error}") from None
        self._read: dict[int, tuple[NDArray[np.int32], memoryview]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Features:
        number, at = divmod(row, _BATCH)
        if number not in self._read:
            self._read[number] = _views(self._reader.get_batch(number).column("row"))
        offsets, data = self._read[number]
        found: Features = _unpack(data[offsets[at] : offsets[at + 1]])
        return found

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Of each row, what `task.size` gives."""
        batches = range(self._reader.num_record_batches - 1)
        parts = [self._reader.get_batch(number).column("size").to_numpy() for number in batches]
        return np.concatenate(parts or [np.zeros(0, np.int32)])


def _batch(rows: Sequence[tuple[Features, int]]) -> pa.RecordBatch:
    try:
        packed = [_pack(row) for row, _ in rows]
    except (TypeError, ValueError, OverflowError) as error:
        raise UnkeptError(f"an encoded row cannot be kept in a file: {error}") from None
    sizes = [size for _, size in rows]
    return pa.RecordBatch.from_arrays([pa.array(packed, pa.binary()), pa.array(sizes, pa.int32())], schema=_SCHEMA)


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
