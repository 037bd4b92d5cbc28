"""The folder that a run writes its answers to: one file for each piece of the rows, and what was asked.

    parts = Parts("answers", "parquet")
    with parts.claimed():                    # no other process writes here meanwhile
        parts.write(12, table)               # part-00012.parquet, whole or not at all
        parts.there()                        # {12}

    _asked.json              what was asked: the same command goes on, another is refused

It knows tables and files, no adapters and no Ray. A folder of this machine, a shared one, or an address in a bucket.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
from filelock import FileLock, Timeout

from ray_lora.atomic import expanded
from ray_lora.bounds import public
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json

Format = Literal["parquet", "jsonl"]
_ASKED = "_asked.json"
_PART = re.compile(r"part-([0-9]{5,})\.(parquet|jsonl)")
_UNFINISHED = ".part-"


class Parts:
    """See the module; nothing is written before `claimed`. RecipeError for an address that cannot be one."""

    def __init__(self, folder: str, format: Format) -> None:
        self.name, self.format = public(folder) if "://" in folder else folder, format
        try:
            if "://" in folder:
                self._files, self._path = pa.fs.FileSystem.from_uri(folder)
            else:
                self._files = pa.fs.LocalFileSystem()
                self._path = str(expanded(folder).absolute())
        except (OSError, ValueError) as error:
            raise RecipeError(f"the output {self.name!r} cannot be reached: {error}") from None
        self._local = isinstance(self._files, pa.fs.LocalFileSystem)

    @property
    def path(self) -> Path | None:
        """The folder, where it is one of a file system."""
        return Path(self._path) if self._local else None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder, and keep other processes of this machine from writing to it.

        Raises:
            RecipeError: another process does right now, or the folder cannot be made.
        """
        try:
            self._files.create_dir(self._path, recursive=True)
        except OSError as error:
            raise RecipeError(f"the output {self.name!r} cannot be made: {error}") from None
        if not self._local:
            yield
            return
        try:
            held = FileLock(Path(self._path) / ".lock").acquire(blocking=False)  # freed when this process dies
        except Timeout:
            raise RecipeError(
                f"another process is writing to {self.name!r} right now; wait for it, or give another output"
            ) from None
        with held:
            for left in Path(self._path).glob(f"{_UNFINISHED}*"):
                left.unlink(missing_ok=True)
            yield

    def asked(self) -> dict[str, Json] | None:
        """What was asked when the folder was begun; None: nothing was.

        Raises:
            RecipeError: the folder holds something else.
        """
        path = f"{self._path}/{_ASKED}"
        if self._files.get_file_info(path).type == pa.fs.FileType.NotFound:
            if others := sorted(name for name in self._names() if not name.startswith(".")):
                raise RecipeError(
                    f"the output {self.name!r} holds {others[0]!r} and no {_ASKED}; give a new folder, or an empty one"
                )
            return None
        try:
            with self._files.open_input_file(path) as file:
                told = json.loads(file.read())
            assert isinstance(told, dict)
            return told
        except (ValueError, AssertionError, OSError) as error:
            raise RecipeError(
                f"{self.name}/{_ASKED} cannot be read ({error}); give another output, or remove the folder"
            ) from None

    def begin(self, told: Mapping[str, Json]) -> None:
        """Write down what is asked."""
        self._put(_ASKED, lambda file: file.write(json.dumps(told, indent=1).encode()))

    def there(self) -> set[int]:
        """The pieces whose file is there."""
        found = (_PART.fullmatch(name) for name in self._names())
        return {int(match[1]) for match in found if match is not None and match[2] == self.format}

    def write(self, number: int, table: pa.Table) -> None:
        """Write a piece's answers: under another name until they are whole, so that a file that is there is.

        Raises:
            DataError: the format cannot hold a value.
        """
        if self.format == "parquet":
            self._put(self._part(number), lambda file: pa.parquet.write_table(table, file))
        else:
            lines = "".join(f"{json.dumps(_plain(row), ensure_ascii=False)}\n" for row in table.to_pylist())
            self._put(self._part(number), lambda file: file.write(lines.encode()))

    def read(self, number: int, columns: list[str]) -> pa.Table | None:
        """Some columns of a piece's answers; None where the file is not there, or is not whole."""
        try:
            with self._files.open_input_file(f"{self._path}/{self._part(number)}") as file:
                if self.format == "parquet":
                    return pa.parquet.read_table(file, columns=columns)
                lines = file.read().decode().split("\n")  # a text may hold all other ends of lines
            if lines.pop():
                return None
            rows = [json.loads(line) for line in lines]
            return pa.table({name: [row[name] for row in rows] for name in columns})
        except (OSError, pa.ArrowException, ValueError, KeyError):
            return None

    def drop(self, number: int) -> None:
        """Take a piece's file away, which is made again."""
        if self._files.get_file_info(f"{self._path}/{self._part(number)}").type != pa.fs.FileType.NotFound:
            self._files.delete_file(f"{self._path}/{self._part(number)}")

    def _part(self, number: int) -> str:
        return f"part-{number:05d}.{self.format}"

    def _names(self) -> list[str]:
        found = self._files.get_file_info(pa.fs.FileSelector(self._path, allow_not_found=True))
        return [Path(info.path).name for info in found]

    def _put(self, name: str, write: Any) -> None:
        try:
            if not self._local:  # an object appears when it is whole
                with self._files.open_output_stream(f"{self._path}/{name}") as file:
                    write(file)
                return
            fresh = f"{self._path}/{_UNFINISHED}{uuid.uuid4().hex}"
            with self._files.open_output_stream(fresh) as file:
                write(file)
            Path(fresh).replace(f"{self._path}/{name}")
        except OSError as error:
            raise RecipeError(f"the output {self.name!r} cannot be written: {error}") from None


def check_format(schema: pa.Schema, format: Format, where: str) -> None:
    """DataError where rows cannot be written as they are."""
    binary = [field.name for field in schema if format == "jsonl" and _has_bytes(field.type)]
    if binary:
        raise DataError(f"{where}: column {binary[0]!r} holds bytes, which jsonl cannot; write parquet")


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_has_bytes(kind.field(at).type) for at in range(kind.num_fields))


def _plain(value: Any) -> Json:
    """A value as JSON has it: times in ISO's form, no number as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, Decimal) else value
