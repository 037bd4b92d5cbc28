"""Tables: from parquet, csv or jsonl (local, `s3://`, `gs://`) to a task's columns under its own names, checked.

    table = read("data/tweets/train.parquet")

It knows files and columns; it knows nothing of encodings, engines or Ray.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.json
import pyarrow.parquet

from ray_lora.errors import DataError, did_you_mean
from ray_lora.recipe import DataSpec
from ray_lora.tasks.task import label_index

_FORMATS = "parquet, csv, jsonl"


def read(path: str) -> pa.Table:
    """A parquet, csv or jsonl file as a table.

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
                table = pa.csv.read_csv(file, parse_options=pa.csv.ParseOptions(newlines_in_values=True))
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


def canonical(table: pa.Table, data: DataSpec, columns: Sequence[str], where: str) -> pa.Table:
    """The task's columns of a table, under the task's names."""
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


def learn_labels(table: pa.Table) -> tuple[str, ...]:
    """The distinct labels of a training table, sorted."""
    labels = tuple(sorted({str(value) for value in table.column("label").to_pylist() if value is not None}))
    if len(labels) < 2:
        raise DataError(
            f"the training rows have {len(labels)} different labels {list(labels)}; at least two are needed"
        )
    return labels


def check_rows(table: pa.Table, labels: Sequence[str], where: str) -> None:
    """Raise DataError for the first row that lacks a value or has a label that training does not know."""
    for column in table.column_names:
        values = table.column(column)
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise DataError(f"{where}, row {row + 1}: column {column!r} is empty; fill it or leave the row out")
    known: set[Any] = set()
    for row, label in enumerate(table.column("label").to_pylist()):
        if label not in known:
            try:
                label_index(label, labels)
            except DataError as error:
                raise DataError(f"{where}, row {row + 1}: {error}") from None
            known.add(label)
