"""Tables: from parquet, csv or jsonl (local, `s3://`, `gs://`) to a task's columns under its own names.

    table = canonical(read("train.csv", roles(data, task.columns)), data, task.columns, "train.csv")

It knows files, columns and their roles; it knows nothing of what rows mean, of encodings, engines or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pyarrow as pa
from pyarrow.fs import FileType

from ray_lora.data.files import FORMATS, find_files
from ray_lora.data.jsonl import values
from ray_lora.data.piece_types import read_piece
from ray_lora.data.pieces import Piece
from ray_lora.data.places import Place
from ray_lora.errors import DataError, RecipeError, did_you_mean
from ray_lora.recipe import DataSpec, Json
from ray_lora.tasks import Column
from ray_lora.tasks.rows import check_spelling

_FORMATS = "parquet, csv, jsonl"


def read(path: str, roles: Mapping[str, Column] = MappingProxyType({})) -> pa.Table:
    """A parquet, csv or jsonl file as a table.

    Args:
        roles: what the file's columns are to the task. A csv file does not say of what type a value is: a text or a
            label stays as it is written ("007", "true"), but for labels that are all whole numbers.

    Rows are counted from 1 wherever they are named; a header and blank lines are none.

    Raises:
        DataError: it is missing, empty, broken (with the row or the line) or of another kind.
    """
    _existing(path)
    return read_piece(Piece(find_files(path)[0], 0), roles)


def _existing(path: str) -> Place:
    """The place of a path; DataError unless a file with something in it is there."""
    place = Place.of(path)
    info = place.info()
    if info.type == FileType.NotFound:
        raise DataError(f"data file {place.name!r} does not exist; give a {_FORMATS} file")
    if info.type != FileType.File:
        raise DataError(f"data path {place.name!r} is a folder; give one {_FORMATS} file")
    if info.size == 0:
        raise DataError(f"data file {place.name!r} is empty; it needs at least one row")
    return place


def read_inputs(path: str, columns: Mapping[str, Column]) -> list[Json]:
    """What a file asks: a value on each line of a jsonl file, else a table's rows, under the task's names.

    Raises:
        DataError: as `read`, or a column that an answer needs is missing.
    """
    asked = {name: column for name, column in columns.items() if column.required != "training"}
    if FORMATS.get(path.rsplit(".", 1)[-1].lower(), "jsonl") != "jsonl":
        rows: list[Json] = canonical(read(path, asked), DataSpec(), asked, path).to_pylist()
        return rows
    try:
        with _existing(path).open() as opened:
            buffer = opened.read_buffer()
    except (DataError, OSError) as error:
        raise DataError(f"input file {path!r} cannot be read: {error}") from None
    found = values(buffer, path)
    if not found:
        raise DataError(f"input file {path!r} has no rows; it needs at least one")
    return found


def roles(data: DataSpec, columns: Mapping[str, Column]) -> dict[str, Column]:
    """A file's columns, by their names in the file, and what they are to the task."""
    return {data.columns.get(name, name): column for name, column in columns.items()}


def canonical(table: pa.Table, data: DataSpec, columns: Mapping[str, Column], where: str) -> pa.Table:
    """The task's columns of a table, under the task's names; an optional one only where the table has it.

    Raises:
        DataError: a column is missing, or the map names one that the task does not have.
    """
    names = check_columns(table.column_names, data, columns, where)
    return pa.table({column: _values(table.column(name), column, where) for column, name in names.items()})


def check_columns(names: Sequence[str], data: DataSpec, columns: Mapping[str, Column], where: str) -> dict[str, str]:
    """The task's column -> the file's column, of those that a file has.

    Args:
        names: all columns of the file.

    Raises:
        DataError: as `canonical`.
    """
    unknown = sorted(set(data.columns) - set(columns))
    if unknown:
        raise DataError(f"data.columns names {unknown}; this task's columns are {', '.join(columns)}")
    try:
        check_spelling(columns, [name for name in names if name not in data.columns.values()])
    except RecipeError as error:
        raise DataError(f"{where}: {error}; rename it, or map it with data.columns") from None
    picked = {}
    for column, role in columns.items():
        name = data.columns.get(column, column)
        if role.required == "optional" and column not in data.columns and name not in names:
            continue
        if name not in names:
            raise DataError(
                f"{where} has no column {name!r}; it has {', '.join(names)}"
                f"{did_you_mean(name, names)}; map it with data.columns.{column}"
            )
        if names.count(name) > 1:
            raise DataError(f"{where} has {names.count(name)} columns {name!r}; give each its own name")
        picked[column] = name
    return picked


def _values(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """A column without a dictionary, whose texts are texts; DataError for the first that is not."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        for row, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError:
                raise DataError(f"{where}, row {row + 1}: column {name!r} is not UTF-8; write it as UTF-8") from None
        raise DataError(f"{where}: column {name!r} is broken: {error}") from None
    return column
