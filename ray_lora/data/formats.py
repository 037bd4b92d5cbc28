"""One file's rows, whatever its format: parquet, csv, jsonl, Arrow's file and Arrow's stream, which `datasets` writes.

    read_format(file, None, roles, {"text", "label"})

It knows formats; it knows nothing of what other files hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from ray_lora.data.annotated.pictures import SCHEMA, table_of
from ray_lora.data.csv_file import read_csv
from ray_lora.data.files import File, annotated
from ray_lora.data.jsonl import read_jsonl
from ray_lora.errors import DataError
from ray_lora.tasks import Column

DESCRIBED = ("parquet", "arrow", "coco", "yolo")  # files that say of what types their columns are


@contextmanager
def reading(file: File) -> Iterator[None]:
    """Whatever a broken file makes its reader say, as a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"data file {file.path!r} is broken: {file.place.why(error)}") from None


def row_groups(file: File) -> list[int]:
    """The number of rows of each row group of a parquet file.

    Raises:
        DataError: it is broken.
    """
    with reading(file), file.place.open() as opened:
        footer = pa.parquet.read_metadata(opened)
        return [footer.row_group(at).num_rows for at in range(footer.num_row_groups)]


def described(file: File) -> pa.Schema | None:
    """All columns of a file and their types, where it says so itself; None for csv and jsonl.

    Raises:
        DataError: it is broken.
    """
    if file.format not in DESCRIBED:
        return None
    if file.how is not None:
        return SCHEMA
    with reading(file), file.place.open() as opened:
        schema = pa.parquet.read_schema(opened) if file.format == "parquet" else _arrow_reader(opened).schema
        _spell(schema)
    return schema


def read_format(
    file: File, groups: tuple[int, int] | None, roles: Mapping[str, Column], columns: Collection[str] | None
) -> pa.Table:
    """A file's rows; of parquet those of some row groups, of annotated pictures some. What is not among the columns is
    not read of parquet and arrow; a table of none of its columns has one without values, so that its rows are counted.

    Raises:
        DataError: it is broken, and the reader knows where. Other errors are `reading`'s.
    """
    if file.how is not None:
        found = annotated(file)
        return table_of(found, *(groups or (0, len(found.pictures))))
    with file.place.open() as opened:
        if file.format == "parquet":
            table = _read_parquet(opened, file.place.local is None, groups, columns)
        elif file.format == "arrow":
            table = _read_arrow(opened, columns)
        else:
            read = read_csv if file.format == "csv" else read_jsonl
            table = read(opened.read_buffer(), roles, file.path)
    _spell(table.schema)
    return table


def _read_parquet(opened: Any, far: bool, groups: tuple[int, int] | None, columns: Collection[str] | None) -> pa.Table:
    file = pa.parquet.ParquetFile(opened, pre_buffer=far)
    wanted = list(range(*groups)) if groups else list(range(file.num_row_groups))
    names = file.schema_arrow.names
    if columns is not None and not any(name in columns for name in names):
        return _bare(sum(file.metadata.row_group(at).num_rows for at in wanted))
    return file.read_row_groups(wanted, None if columns is None else [name for name in names if name in columns])


def _read_arrow(opened: Any, columns: Collection[str] | None) -> pa.Table:
    names = _arrow_reader(opened).schema.names
    opened.seek(0)
    wanted = None if columns is None else [at for at, name in enumerate(names) if name in columns]
    # without fields Arrow reads all of them; the rows of one are counted
    table = _arrow_reader(opened, [0] if wanted == [] and names else wanted).read_all()
    table.validate(full=True)  # what is broken is no longer seen later
    return _bare(table.num_rows) if wanted == [] else table


def _arrow_reader(opened: Any, fields: list[int] | None = None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    whole = opened.read(6) == b"ARROW1"
    opened.seek(0)
    return pa.ipc.open_file(opened, options=options) if whole else pa.ipc.open_stream(opened, options=options)


def _spell(fields: Iterable[pa.Field]) -> None:
    """UnicodeDecodeError for a name, however deep, that is not UTF-8: pyarrow itself would say so when it is used."""
    for field in fields:
        inner = (field.type.field(at) for at in range(field.type.num_fields)) if field.name is not None else ()
        _spell(inner)


def _bare(rows: int) -> pa.Table:
    return pa.table({"": pa.nulls(rows)})
