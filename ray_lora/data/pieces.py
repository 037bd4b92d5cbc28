"""Files' rows in pieces, each of which is read, checked and encoded by itself.

    pieces = settle(cut(find_files("rows/")), roles)       # DataError where files differ
    table = read_piece(pieces[0], roles)

It knows files, formats and columns; it knows nothing of what rows mean, of encodings, engines or Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat

import pyarrow as pa
import pyarrow.compute as pc

from ray_lora.data.alike import WRITTEN, agree
from ray_lora.data.annotated.pictures import parts, stretches
from ray_lora.data.class_labels import named
from ray_lora.data.csv_file import are_whole_numbers
from ray_lora.data.files import File, annotated, check_unchanged
from ray_lora.data.formats import DESCRIBED, described, read_format, reading, row_groups
from ray_lora.data.pictures import (
    BY_PATH,
    HELD,
    check_depth,
    column_of,
    digest_of,
    is_metadata,
    read_members,
    renamed,
    text_of,
    with_files,
    without_files,
)
from ray_lora.data.transcripts import read_transcripts
from ray_lora.errors import DataError
from ray_lora.tasks import Column

_THREADS = 8  # for what waits for a disk or a bucket
_MEMBERS = 1024  # of a folder in one piece: they are in memory together
_BYTES = 1 << 22  # hashed at once
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Piece:
    """A stretch of one file's rows.

    Attributes:
        file: where they are.
        number: of the file among the split's files.
        groups: parquet's row groups, or annotated pictures, [begin, end); None: the whole file.
        skipped: rows of these groups before the piece's first one; a group of many rows is read for several pieces.
        first: number, in its file, of the piece's first row.
        rows: how many, where that is known before they are read.
        schema: the types that columns have in all files (`settle`); None: as this file has them.
    """

    file: File
    number: int
    groups: tuple[int, int] | None = None
    first: int = 0
    rows: int | None = None
    skipped: int = 0
    schema: pa.Schema | None = None


def cut(files: Sequence[File], most_rows: int = 32_768) -> list[Piece]:
    """Files in pieces, in their order: parquet by row groups of about `most_rows` rows together, and larger groups in
    parts; annotated pictures by their bytes too; a folder's pictures or sounds in fewer; others whole.

    Raises:
        DataError: a parquet file is broken or has no rows.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        parts = threads.map(_cut, range(len(files)), files, repeat(most_rows))
        return [piece for part in parts for piece in part]


def _cut(number: int, file: File, most_rows: int) -> list[Piece]:
    if file.members:
        count, most = len(file.members), min(most_rows, _MEMBERS)
        return [Piece(file, number, None, begin, min(most, count - begin), begin) for begin in range(0, count, most)]
    if file.how is not None:
        return [Piece(file, number, (at, end), at, end - at) for at, end in stretches(annotated(file), most_rows)]
    if file.format != "parquet":
        return [Piece(file, number)]
    sizes = row_groups(file)
    pieces: list[Piece] = []
    begin = first = rows = 0
    for at, size in enumerate(sizes):
        if rows and rows + size > most_rows:
            pieces.append(Piece(file, number, (begin, at), first, rows))
            begin, first, rows = at, first + rows, 0
        rows += size
        if rows > 2 * most_rows:  # a group alone
            share = -(-rows // -(-rows // most_rows))  # about equal parts
            for skipped in range(0, rows, share):
                part = min(share, rows - skipped)
                pieces.append(Piece(file, number, (at, at + 1), first + skipped, part, skipped))
            begin, first, rows = at + 1, first + rows, 0
    if rows:
        pieces.append(Piece(file, number, (begin, len(sizes)), first, rows))
    if not pieces:
        raise _no_rows(file)
    return pieces


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
            table = _with_meaning(piece, table, roles, files)
        rows = table.num_rows
        table = only(table, columns)
        for name, value in piece.file.partitions:
            if columns is None or name in columns:
                table = _add_partition(piece, table, rows, name, value)
    if rows == 0:
        raise _no_rows(piece.file)
    return table


def _members(piece: Piece, roles: Mapping[str, Column]) -> pa.Table:
    """A folder's pictures, or its sounds and what is said in them."""
    place = piece.file.place
    names = piece.file.members[piece.skipped : None if piece.rows is None else piece.skipped + piece.rows]
    table = read_members(place, names, column_of(roles))
    if not piece.file.transcripts:
        return table
    said = read_transcripts(place, names, piece.file.transcripts)
    return table.append_column(text_of(roles), pa.array(said, pa.string()))


_WHOLE: dict[tuple[object, ...], pa.Table] = {}  # the last text file that is read in parts: each would read all of it


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


def _with_meaning(piece: Piece, table: pa.Table, roles: Mapping[str, Column], files: bool = True) -> pa.Table:
    """A table whose labels and files are what the file means by them: names for indices, bytes for paths."""
    place = piece.file.place
    table = named(renamed(table, place, roles), roles, piece.file.path)
    return with_files(table, place, roles, piece.first) if files else without_files(table, roles)


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
    table = _with_meaning(piece, schema.empty_table(), roles)
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


def _written(piece: Piece, table: pa.Table, name: str) -> pa.Array | pa.ChunkedArray | None:
    """What a text file or a folder's name holds as labels, as it is written; None for columns that have a type."""
    if table.column_names.count(name) > 1:
        return None
    if piece.file.format == "csv" and name not in dict(piece.file.partitions):
        return table.column(name)
    value = dict(piece.file.partitions).get(name)
    return None if value is None or not pa.types.is_string(table.schema.field(name).type) else _value(value)


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


def first_pieces(pieces: Sequence[Piece]) -> list[Piece]:
    """The first piece of each file."""
    return list({piece.number: piece for piece in reversed(pieces)}.values())[::-1]


def look_at_files(pieces: Sequence[Piece], roles: Mapping[str, Column]) -> list[pa.Schema]:
    """`look` of the first piece of each file, in a few threads."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(look, first_pieces(pieces), repeat(roles)))


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


def only(table: pa.Table, columns: Collection[str] | None) -> pa.Table:
    """A table's columns of these names; None: all."""
    return table if columns is None else table.select([at for at, n in enumerate(table.column_names) if n in columns])


def digest(files: Sequence[File]) -> str:
    """sha256 of a file's bytes, of annotations and all their pictures; of several files, of their digests in order, as
    hexadecimal digits.

    Raises:
        DataError: a file cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = list(threads.map(_digest, files))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(file: File) -> str:
    check_unchanged(file)
    if file.members:
        return digest_of(file.place, (*file.members, *file.transcripts))
    found = hashlib.sha256()
    if file.how is not None:
        for part in parts(annotated(file)):
            found.update(part)
        return found.hexdigest()
    with reading(file), file.place.open() as opened:
        while block := opened.read(_BYTES):
            found.update(block)
    return found.hexdigest()


def _add_partition(piece: Piece, table: pa.Table, rows: int, name: str, value: str) -> pa.Table:
    """A table with the column that a folder names, unless the file has it too and says the same."""
    if name not in table.column_names:
        column = pa.repeat(_value(value)[0], rows)
        return table.append_column(name, column) if table.num_columns else pa.table({name: column})
    held = table.column(table.column_names.index(name))
    words = held.cast(held.type.value_type) if pa.types.is_dictionary(held.type) else held
    try:
        same = _value(value).cast(words.type)[0]
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


def _value(written: str) -> pa.Array:
    return pa.array([None if written == _NO_VALUE else written], pa.string())


def _no_rows(file: File) -> DataError:
    return DataError(f"data file {file.path!r} has no rows; it needs at least one")
