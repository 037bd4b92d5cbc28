"""Wrong rows of any task are named by file and number, all at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from ray_lora.data.check import check_table, check_tables
from ray_lora.data.read import canonical, read, roles
from ray_lora.data.rows import read_rows
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec
from ray_lora.tasks import Row, task_of
from tests.conformance.case import Case


def check_wrong_rows(case: Case, tmp_path: Path) -> None:
    """Right rows pass; every wrong one is named with what is wrong, and so is a row that lacks a value."""
    right = [dict(row) for row in case.rows]
    schema = pa.Table.from_pylist(right).schema
    read_and_check(case, tmp_path / "right.parquet", right, schema)
    rows = [*right, *({**right[0], **change} for change, _ in case.wrong), {**right[1], case.task.input: None}]
    said = [what for _, what in case.wrong] + [f"column '{case.task.input}' is empty; fill it or leave the row out"]
    file = tmp_path / "wrong.parquet"
    with pytest.raises(DataError) as caught:
        read_and_check(case, file, rows, schema)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(said)
    for number, (line, what) in enumerate(zip(lines, said, strict=True), start=len(right) + 1):
        assert re.match(rf"{re.escape(str(file))}, row {number}: .*{what}", line), line


def check_rows_in_files(case: Case, tmp_path: Path) -> None:
    """Rows are the same in one file and in as many as there are rows, of several formats at once."""
    right = [dict(row) for row in case.rows]
    schema = pa.Table.from_pylist(right).schema
    read_and_check(case, tmp_path / "right.parquet", right, schema)
    paths = []
    for number, row in enumerate(right):
        table = pa.Table.from_pylist([row], schema=schema)
        paths.append(str(tmp_path / f"{number}.{('parquet', 'arrow')[number % 2]}"))
        if number % 2:
            with pa.ipc.new_stream(paths[-1], schema) as stream:
                stream.write_table(table)
        else:
            pa.parquet.write_table(table, paths[-1])
    task, data = task_of(case.spec), DataSpec()
    one, many = (read_rows(given, data, task.columns) for given in (str(tmp_path / "right.parquet"), paths))
    assert one.table.num_rows == len(right)
    assert many.table.to_pydict() == one.table.to_pydict()
    assert many.table.schema == one.table.schema
    check_tables(task, case.spec, many.tables)


def read_and_check(case: Case, file: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    """As a recipe's files are read, before any base is loaded."""
    pa.parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), file)
    task, data = task_of(case.spec), DataSpec()
    table = canonical(read(str(file), roles(data, task.columns)), data, task.columns, str(file))
    check_table(task, case.spec, table, str(file))
