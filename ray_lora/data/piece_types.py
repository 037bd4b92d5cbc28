"""Rows of pieces under the types that columns have in all files.

    pieces = settle(cut(find_files("rows/")), roles)       # DataError where files differ
    table = read_piece(pieces[0], roles)

A text file does not say of what type a value is, and parts of one table may be of types that can be one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat

import pyarrow as pa

from ray_lora.data.alike import WRITTEN, agree
from ray_lora.data.csv_file import are_whole_numbers
from ray_lora.data.files import File
from ray_lora.data.formats import described
from ray_lora.data.pictures import BY_PATH, HELD, check_depth, column_of, text_of
from ray_lora.data.piece_rows import only, read_written, value_of, with_meaning
from ray_lora.data.pieces import Piece, first_pieces
from ray_lora.errors import DataError
from ray_lora.tasks import Column

_THREADS = 8  # for what waits for a disk or a bucket


def read_piece(piece: Piece, roles: Mapping[str, Column], columns: Collection[str] | None = None) -> pa.Table:
    """A piece's rows, under the file's names; partition columns come last.

    Args:
        roles: what the file's columns are to the task. A text file does not say of what type a value is: a text or a
            label stays as it is written, but for labels that are all whole numbers.
        columns: only these, where the file has them; None: all.

    Raises:
        DataError: the file is broken (with the row or the line), has no rows, has changed since it was found, or a
            column is not of the type that the other files have.
    """
    table = read_written(piece, roles, columns)
    schema = piece.schema
    if schema is None:
        schema = agree({piece.file.path: look_at(piece, table, roles)}, roles)
    return as_types(piece, table, schema)


def look(piece: Piece, roles: Mapping[str, Column]) -> pa.Schema:
    """The columns of a piece's file and their types. Parquet's and arrow's are read from what describes them, other
    files are read.

    Raises:
        DataError: as `read_piece`.
    """
    return first_look(piece, roles)[0]


def first_look(piece: Piece, roles: Mapping[str, Column]) -> tuple[pa.Schema, pa.Table | None]:
    """`look`, and what was read for it: a table of `read_written`, or None where rows were not read."""
    schema = described(piece.file)
    if piece.file.members:
        spoken = [(text_of(roles), pa.string())] if piece.file.transcripts else []
        schema = pa.schema([(column_of(roles), HELD), *spoken])
    if schema is None:
        table = read_written(piece, roles)
        return look_at(piece, table, roles), table
    table = with_meaning(piece, schema.empty_table(), roles)
    for name in dict(piece.file.partitions):
        if name not in table.column_names:
            table = table.append_column(name, pa.array([], pa.string()))
    return look_at(piece, table, roles), None


def look_at(piece: Piece, table: pa.Table, roles: Mapping[str, Column]) -> pa.Schema:
    """`look`, from what `read_written` gave."""
    fields = []
    for field in table.schema:
        role = roles.get(field.name)
        if role is not None and "label" in role.kinds and (words := _written(piece, table, field.name)) is not None:
            field = _field_of(field.name, words)
        fields.append(field if field.metadata in (WRITTEN, BY_PATH) else field.remove_metadata())
    return pa.schema(fields)


def look_at_files(pieces: Sequence[Piece], roles: Mapping[str, Column]) -> list[pa.Schema]:
    """`look` of the first piece of each file, in a few threads."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(look, first_pieces(pieces), repeat(roles)))


def _written(piece: Piece, table: pa.Table, name: str) -> pa.Array | pa.ChunkedArray | None:
    """What a text file or a folder's name holds as labels, as it is written; None for columns that have a type."""
    if table.column_names.count(name) > 1:
        return None
    if piece.file.format == "csv" and name not in dict(piece.file.partitions):
        return table.column(name)
    value = dict(piece.file.partitions).get(name)
    return None if value is None or not pa.types.is_string(table.schema.field(name).type) else value_of(value)


def _field_of(name: str, words: pa.Array | pa.ChunkedArray) -> pa.Field:
    if words.null_count == len(words):
        return pa.field(name, pa.null())
    return pa.field(name, pa.int64(), metadata=WRITTEN) if are_whole_numbers(words) else pa.field(name, pa.string())


def settle(pieces: Sequence[Piece], roles: Mapping[str, Column], looks: Sequence[pa.Schema] = ()) -> list[Piece]:
    """Pieces that know the types which the columns have in all of their files.

    Args:
        looks: `look` of the first piece of each file, in the files' order; without, they are taken here.

    Raises:
        DataError: files have other types, or one lacks a column that others have; of folders whose names are labels one
            lies in another.
    """
    if any("label" in role.kinds for role in roles.values()):
        check_depth({piece.file.path for piece in pieces if piece.file.members and not piece.file.transcripts})
    found = zip(first_pieces(pieces), looks or look_at_files(pieces, roles), strict=True)
    schema = agree({piece.file.path: schema for piece, schema in found}, roles)
    return [replace(piece, schema=schema) for piece in pieces]


def as_types(piece: Piece, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of `read_written`, its columns of the types that all files have.

    Raises:
        DataError: a value cannot be of that type; the message says which.
    """
    for field in schema:
        for at in [at for at, name in enumerate(table.column_names) if name == field.name]:
            column = table.column(at)
            if column.type == field.type:
                continue
            try:
                if pa.types.is_dictionary(column.type):
                    column = column.cast(column.type.value_type)
                table = table.set_column(at, field.name, column.cast(field.type))
            except pa.ArrowException as error:
                raise DataError(
                    f"{piece.file.path}: column {field.name!r} is {column.type} and cannot be {field.type}, as it is "
                    f"in other files: {error}"
                ) from None
    return table


def read_files(
    files: Sequence[File], roles: Mapping[str, Column], columns: Collection[str] | None = None
) -> list[pa.Table]:
    """All rows of each file, of the types that all files have, as `read_piece` gives them; each file is read once.

    Raises:
        DataError: as `read_piece` and `settle`.
    """
    pieces = [Piece(file, number) for number, file in enumerate(files)]
    looks = [first_look(piece, roles) for piece in pieces]
    settled = settle(pieces, roles, [schema for schema, _ in looks])
    return [
        as_types(piece, read_written(piece, roles, columns) if table is None else only(table, columns), piece.schema)
        for piece, (_, table) in zip(settled, looks, strict=True)
    ]
