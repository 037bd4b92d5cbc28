"""A piece's rows as its file holds them, and what they mean there: labels' names, files that are named, partitions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from ray_lora.data.class_labels import named
from ray_lora.data.files import check_unchanged
from ray_lora.data.formats import DESCRIBED, read_format, reading
from ray_lora.data.pictures import (
    column_of,
    is_metadata,
    read_members,
    renamed,
    text_of,
    with_files,
    without_files,
)
from ray_lora.data.pieces import Piece, no_rows
from ray_lora.data.transcripts import read_transcripts
from ray_lora.errors import DataError
from ray_lora.tasks import Column

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_WHOLE: dict[tuple[object, ...], pa.Table] = {}  # the last text file that is read in parts: each would read all of it


def read_written(
    piece: Piece, roles: Mapping[str, Column], columns: Collection[str] | None = None, files: bool = True
) -> pa.Table:
    """As `read_piece`, but whole numbers that a text file holds as labels are texts still.

    Args:
        files: what rows name by path is read.
    """
    check_unchanged(piece.file)
    with reading(piece.file):
        if piece.file.members:
            table = _members(piece, roles)
        else:
            every = None if is_metadata(piece.file.place) else columns  # its files' column has another name there
            table = _format_of(piece, roles, every)
            if piece.rows is not None:
                table = table.slice(piece.skipped, piece.rows)
            table = with_meaning(piece, table, roles, files)
        rows = table.num_rows
        table = only(table, columns)
        for name, value in piece.file.partitions:
            if columns is None or name in columns:
                table = _add_partition(piece, table, rows, name, value)
    if rows == 0:
        raise no_rows(piece.file)
    return table


def with_meaning(piece: Piece, table: pa.Table, roles: Mapping[str, Column], files: bool = True) -> pa.Table:
    """A table whose labels and files are what the file means by them: names for indices, bytes for paths."""
    place = piece.file.place
    table = named(renamed(table, place, roles), roles, piece.file.path)
    return with_files(table, place, roles, piece.first) if files else without_files(table, roles)


def only(table: pa.Table, columns: Collection[str] | None) -> pa.Table:
    """A table's columns of these names; None: all."""
    return table if columns is None else table.select([at for at, n in enumerate(table.column_names) if n in columns])


def _members(piece: Piece, roles: Mapping[str, Column]) -> pa.Table:
    """A folder's pictures, or its sounds and what is said in them."""
    place = piece.file.place
    names = piece.file.members[piece.skipped : None if piece.rows is None else piece.skipped + piece.rows]
    table = read_members(place, names, column_of(roles))
    if not piece.file.transcripts:
        return table
    said = read_transcripts(place, names, piece.file.transcripts)
    return table.append_column(text_of(roles), pa.array(said, pa.string()))


def _format_of(piece: Piece, roles: Mapping[str, Column], columns: Collection[str] | None) -> pa.Table:
    """The rows of a piece's file, or of its row groups."""
    if piece.rows is None or piece.file.format in DESCRIBED:
        return read_format(piece.file, piece.groups, roles, columns)
    key = (piece.file, tuple(roles.items()), None if columns is None else frozenset(columns))
    table = _WHOLE.get(key)
    if table is None:
        table = read_format(piece.file, piece.groups, roles, columns)
        _WHOLE.clear()
        _WHOLE[key] = table
    return table


def _add_partition(piece: Piece, table: pa.Table, rows: int, name: str, value: str) -> pa.Table:
    """A table with the column that a folder names, unless the file has it too and says the same."""
    if name not in table.column_names:
        column = pa.repeat(value_of(value)[0], rows)
        return table.append_column(name, column) if table.num_columns else pa.table({name: column})
    held = table.column(table.column_names.index(name))
    words = held.cast(held.type.value_type) if pa.types.is_dictionary(held.type) else held
    try:
        same = value_of(value).cast(words.type)[0]
        alike = (
            words.null_count == rows if not same.is_valid else pc.all(pc.equal(words, same), skip_nulls=False).as_py()
        )
    except pa.ArrowException:
        alike = False
    if not alike:
        raise DataError(
            f"{piece.file.path}: column {name!r} is not {value!r} in all rows, which its folder's name says; "
            "rename the folder or the column"
        )
    return table


def value_of(written: str) -> pa.Array:
    return pa.array([None if written == _NO_VALUE else written], pa.string())
