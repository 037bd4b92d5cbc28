"""Pictures and sounds that lie in files of their own: those of a folder, and those that rows name by path.

    read_members(Place.of("animals/cat"), ["a.png"], "image")    # a column of {"bytes": ..., "path": "a.png"}
    with_files(table, Place.of("rows.csv"), roles)                # paths of its column of pictures are read

A path begins at the folder of the file that names it. It knows files and columns; it decodes nothing, and no address
is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from ray_lora.data.places import Place
from ray_lora.errors import DataError
from ray_lora.tasks import Column
from ray_lora.tasks.task import FILE_KINDS

ENDS = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "jp2", "avif", "tga")
SOUND_ENDS = ("wav", "wave", "flac", "ogg", "oga", "opus", "mp3")
HELD = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])  # as `datasets` writes it
_METADATA = re.compile(r"metadata\.(csv|jsonl|parquet)")
BY_PATH = {b"read": b"path"}  # of a field: its values lie in other files than the row's
_LIKE = {"picture": ".png", "sound": ".wav"}
_TEXT = "transcription"  # what the Hub's sets of sounds call a transcript
_MOST_NAMED = 10  # wrong rows in one message


def column_of(roles: Mapping[str, Column]) -> str:
    """The file's column that holds pictures or sounds."""
    return next((name for name, role in roles.items() if FILE_KINDS.intersection(role.kinds)), "image")


def text_of(roles: Mapping[str, Column]) -> str:
    """The file's column that holds what is said in sounds."""
    return next((name for name, role in roles.items() if "text" in role.kinds), "text")


def check_depth(folders: Collection[str]) -> None:
    """DataError where one folder of pictures or sounds lies in another: nobody can tell which of their names is the
    label.

    Args:
        folders: the paths of those that hold files themselves.
    """
    for folder in sorted(folders):
        around = next((str(outer) for outer in PurePosixPath(folder).parents if str(outer) in folders), None)
        if around is not None:
            raise DataError(
                f"{folder!r} lies in {around!r}, and both hold files themselves; a folder's name is the label, so put "
                "all files of a label into one folder, beside those of the others"
            )


def read_members(folder: Place, names: Sequence[str], column: str) -> pa.Table:
    """The bytes of a folder's files as a table's only column, in the order of the names."""
    rows = [{"bytes": _bytes(folder.below(name)), "path": name} for name in names]
    return pa.table({column: pa.chunked_array([pa.array([row], HELD) for row in rows], HELD)})


def digest_of(folder: Place, names: Sequence[str]) -> str:
    """sha256 over a folder's files, names and bytes."""
    found = hashlib.sha256()
    for name in names:
        content = _bytes(folder.below(name))
        found.update(f"{name}\n{len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()


def with_files(table: pa.Table, place: Place, roles: Mapping[str, Column], first: int = 0) -> pa.Table:
    """A table whose columns of pictures and sounds hold them: what a row names by path is read; a text without a dot
    is base64.

    Args:
        first: the number, in its file, of the table's first row.

    Raises:
        DataError: one cannot be had; the first wrong rows are named.
    """
    for name, role in _of_files(table, roles):
        kind = _kind_of(table.column(name))
        if kind is None:
            continue
        column = _as_written(table.column(name))
        values = _read(column.to_pylist(), place, name, "picture" if "image" in role.kinds else "sound", first)
        mark = BY_PATH if table.num_rows == 0 or any(value and value.get("path") for value in values) else None
        chunks = [pa.array([value], kind) for value in values] or [pa.array([], kind)]
        field = pa.field(name, kind, metadata=mark)
        table = table.set_column(table.column_names.index(name), field, pa.chunked_array(chunks, kind))
    return table


def without_files(table: pa.Table, roles: Mapping[str, Column]) -> pa.Table:
    """As `with_files`, but nothing is read: such a column holds what the rows say of their files."""
    for name, _ in _of_files(table, roles):
        column = table.column(name)
        kind = _kind_of(column)
        if kind is None:
            continue
        rows = [{"bytes": None, "path": value} if isinstance(value, str) else value for value in column.to_pylist()]
        mark = BY_PATH if any(_path_of(row) for row in rows) else None
        field = pa.field(name, kind, metadata=mark)
        table = table.set_column(table.column_names.index(name), field, pa.array(rows, kind))
    return table


def paths_of(table: pa.Table, roles: Mapping[str, Column]) -> list[list[str]]:
    """The paths that each row of a table of `without_files` names."""
    found: list[list[str]] = [[] for _ in range(table.num_rows)]
    for name, _ in _of_files(table, roles):
        column = table.column(name)
        if _is_struct(column.type):
            for row, value in zip(found, column.to_pylist(), strict=True):
                row += [path] if (path := _path_of(value)) else []
    return found


def _path_of(value: dict[str, Any] | None) -> str | None:
    """The path that a row names; None where it holds its bytes: base64 has no dot."""
    if value is None or value["bytes"] is not None or not value["path"]:
        return None
    path: str = value["path"]
    return path if "." in path else None


def _of_files(table: pa.Table, roles: Mapping[str, Column]) -> list[tuple[str, Column]]:
    """The table's columns of pictures and sounds."""
    return [
        (name, role)
        for name, role in roles.items()
        if not FILE_KINDS.isdisjoint(role.kinds) and table.column_names.count(name) == 1
    ]


def _kind_of(column: pa.ChunkedArray) -> pa.DataType | None:
    """What a column is once its files are read; None for one that holds them."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if _is_text(kind) or (_is_struct(kind) and pa.types.is_null(kind.field("bytes").type)):  # paths alone, in all rows
        return HELD
    return kind if _names_paths(kind, column) else None


def _as_written(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(pa.large_string()) if _is_text(kind) else column


def renamed(table: pa.Table, place: Place, roles: Mapping[str, Column]) -> pa.Table:
    """A table of a folder's metadata file, whose columns `file_name`, the paths of its files, and of sounds
    `transcription` have the roles' names."""
    if not is_metadata(place):
        return table
    meant = {"file_name": column_of(roles)}
    if any("audio" in role.kinds for role in roles.values()):
        meant[_TEXT] = text_of(roles)
    meant = {name: column for name, column in meant.items() if column not in table.column_names}
    return table.rename_columns([meant.get(name, name) for name in table.column_names])


def is_metadata(place: Place) -> bool:
    """Whether a file is a folder's metadata file by its name."""
    return _METADATA.fullmatch(place.name.rpartition("/")[2]) is not None


def named_by_path(schemas: Iterable[pa.Schema]) -> bool:
    """Whether rows of any of these columns lie in other files."""
    return any(field.metadata == BY_PATH for schema in schemas for field in schema)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _names_paths(kind: pa.DataType, column: pa.ChunkedArray) -> bool:
    """Whether a column of {"bytes", "path"} has rows that are paths alone."""
    if not _is_struct(kind):
        return False
    chunks = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return bool(chunks.field("bytes").null_count > chunks.null_count)


def _read(values: Sequence[Any], place: Place, column: str, word: str, first: int) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = []
    wrong: list[str] = []
    folder = place.above
    for row, value in enumerate(values):
        try:
            found.append(_held(value, folder, word))
        except DataError as error:
            wrong.append(f"{place.name}, row {first + row + 1}: column {column!r}: {error}")
            if len(wrong) == _MOST_NAMED:
                break
    if wrong:
        raise DataError("\n".join(wrong))
    return found


def _held(value: Any, folder: Place, word: str) -> dict[str, Any] | None:
    """A row's picture or sound; None where it has none."""
    if isinstance(value, dict):
        if value["bytes"] is not None or value["path"] is None:
            return value
        value = value["path"]
    if value is None or value == "":
        return None
    if "." in value:  # base64 has none
        return {"bytes": _bytes(_at(folder, value, word), word), "path": value}
    try:
        return {"bytes": base64.b64decode(value, validate=True), "path": None}
    except binascii.Error:
        raise DataError(
            f"{value[:60]!r} is neither a path, which ends as a {word}'s does ({_LIKE[word]}), nor base64 text"
        ) from None


def _at(folder: Place, path: str, word: str) -> Place:
    if "://" in path:
        raise DataError(f"{path!r} is an address, and nothing is fetched; give a path of a file, or the {word}'s bytes")
    return Place.of(path) if Path(path).is_absolute() else folder.below(path)


def _bytes(place: Place, word: str = "file") -> bytes:
    try:
        with place.open() as file:
            content: bytes = file.read()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{word} {place.name!r} cannot be read: {place.why(error)}") from None
    return content
