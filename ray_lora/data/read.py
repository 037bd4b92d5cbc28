"""Tables: from parquet, csv or jsonl (local, `s3://`, `gs://`) to a task's columns under its own names.

    table = canonical(read("train.csv", roles(data, task.columns)), data, task.columns, "train.csv")

It knows files, columns and their roles; it knows nothing of what rows mean, of encodings, engines or Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs
import pyarrow.json
import pyarrow.parquet

from ray_lora.errors import DataError, did_you_mean
from ray_lora.recipe import DataSpec
from ray_lora.tasks import Column

_FORMATS = "parquet, csv, jsonl"


def read(path: str, roles: Mapping[str, Column] = MappingProxyType({})) -> pa.Table:
    """A parquet, csv or jsonl file as a table.

    Args:
        roles: what the file's columns are to the task. A csv file does not say of what type a value is: a text or a
            label stays as it is written ("007", "true"), but for labels that are all whole numbers.

    Raises:
        DataError: it is missing, empty, broken (with the line) or of another kind.
    """
    try:
        filesystem, inner = pa.fs.FileSystem.from_uri(path) if "://" in path else (pa.fs.LocalFileSystem(), path)
        info = filesystem.get_file_info(inner)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"data file {path!r} cannot be reached: {error}") from None
    if info.type == pa.fs.FileType.NotFound:
        raise DataError(f"data file {path!r} does not exist; give a {_FORMATS} file")
    if info.type != pa.fs.FileType.File:
        raise DataError(f"data path {path!r} is a folder; give one {_FORMATS} file")
    if info.size == 0:
        raise DataError(f"data file {path!r} is empty; it needs at least one row")
    kind = inner.rsplit(".", 1)[-1].lower()
    try:
        with filesystem.open_input_file(inner) as file:
            if kind in ("parquet", "pq"):
                table = pa.parquet.read_table(file)
            elif kind == "csv":
                table = _read_csv(file, roles)
            elif kind in ("jsonl", "ndjson", "json"):
                table = pa.json.read_json(file, parse_options=pa.json.ParseOptions(newlines_in_values=False))
            else:
                raise DataError(f"data file {path!r} ends in {kind!r}; give a {_FORMATS} file")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        line = _broken_line(filesystem, inner) if kind in ("jsonl", "ndjson", "json") else ""
        raise DataError(f"data file {path!r} is broken{line}: {str(error).splitlines()[0]}") from None
    if table.num_rows == 0:
        raise DataError(f"data file {path!r} has no rows; it needs at least one")
    return table


def _read_csv(file: pa.NativeFile, roles: Mapping[str, Column]) -> pa.Table:
    words = {name: pa.string() for name, role in roles.items() if {"text", "label"} & set(role.kinds)}
    table = pa.csv.read_csv(
        file,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=words),
    )
    for at, name in enumerate(table.column_names):
        if name in roles and "label" in roles[name].kinds:
            table = table.set_column(at, name, _indices(table.column(at)))
    return table


def _indices(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels, as numbers where all of them are written as whole numbers: indices. An empty one is none."""
    filled = pc.if_else(pc.equal(labels, ""), pa.scalar(None, pa.string()), labels)
    known = filled.drop_null()
    whole = len(known) > 0 and pc.all(pc.match_substring_regex(known, "^(0|-?[1-9][0-9]{0,17})$")).as_py()
    return filled.cast(pa.int64()) if whole else filled


def _broken_line(filesystem: pa.fs.FileSystem, path: str) -> str:
    """` at line N` for the first line that is not a JSON object."""
    with filesystem.open_input_stream(path) as file:
        for number, line in enumerate(file.read().split(b"\n"), start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f" at line {number}"
            except ValueError:
                return f" at line {number}"
    return ""


def roles(data: DataSpec, columns: Mapping[str, Column]) -> dict[str, Column]:
    """A file's columns, by their names in the file, and what they are to the task."""
    return {data.columns.get(name, name): column for name, column in columns.items()}


def canonical(table: pa.Table, data: DataSpec, columns: Mapping[str, Column], where: str) -> pa.Table:
    """The task's columns of a table, under the task's names.

    Raises:
        DataError: a column is missing, or the map names one that the task does not have.
    """
    unknown = sorted(set(data.columns) - set(columns))
    if unknown:
        raise DataError(f"data.columns names {unknown}; this task's columns are {', '.join(columns)}")
    picked = {}
    for column in columns:
        name = data.columns.get(column, column)
        if name not in table.column_names:
            raise DataError(
                f"{where} has no column {name!r}; it has {', '.join(table.column_names)}"
                f"{did_you_mean(name, table.column_names)}; map it with data.columns.{column}"
            )
        picked[column] = table.column(name)
    return pa.table(picked)
