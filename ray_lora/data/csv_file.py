"""Csv files as tables. Texts, labels and ids are what is written: "007", "true", "3".

    table = read_csv(buffer, {"mood": Column(("label",))}, "train.csv")

It knows cells and lines; it knows nothing of what rows mean.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ray_lora.data.text_file import utf8
from ray_lora.errors import DataError
from ray_lora.tasks import Column

_LEAST_BLOCK, _MOST_BLOCK = 1 << 20, 2**31 - 2
_MOST_NAMED = 10  # wrong lines in one message
_ZERO = re.compile(rb'(?:^|[,"\n])-?0[0-9]')


def read_csv(buffer: Any, roles: Mapping[str, Column], where: str) -> pa.Table:
    """A csv file's bytes as a table. A label that is empty is null; one that is a whole number is still a text, because
    only all files together say whether labels are numbers.

    Args:
        roles: what the file's columns are to the task.

    Raises:
        DataError: a row has more or fewer cells than the header, quotes are not closed, or it is not UTF-8.
    """
    buffer = utf8(buffer, where, _place)
    if b'"' in buffer.to_pybytes():  # what Arrow makes of a stray quote is not what is written
        _check_records(buffer, where)
    words = {name: pa.string() for name, role in roles.items() if {"text", "label", "labels"} & set(role.kinds)}
    try:
        table = _parsed(buffer, words)
        if padded := _padded(buffer, table, roles):
            table = _parsed(buffer, words | dict.fromkeys(padded, pa.string()))
    except pa.ArrowInvalid:
        _check_records(buffer, where)
        raise
    for at, name in enumerate(table.column_names):
        if name in roles and "label" in roles[name].kinds:
            table = table.set_column(at, name, _filled(table.column(at)))
    return table


def _parsed(buffer: pa.Buffer, types: Mapping[str, pa.DataType], only: Sequence[str] | None = None) -> pa.Table:
    return pa.csv.read_csv(
        pa.BufferReader(buffer),
        # one block, so that a cell may be of any size and all rows say what type a column is
        read_options=pa.csv.ReadOptions(block_size=min(max(len(buffer) + 1, _LEAST_BLOCK), _MOST_BLOCK)),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=only),
    )


def _padded(buffer: pa.Buffer, table: pa.Table, roles: Mapping[str, Column]) -> list[str]:
    """The columns that Arrow takes for numbers, no task asks for as such, and in which one is written with a zero
    before it: an id, of which "07" and "7" are two."""
    asked = {name for name, role in roles.items() if {"number", "time"} & set(role.kinds)}
    numbers = [one.name for one in table.schema if pa.types.is_integer(one.type) and one.name not in asked]
    if not numbers or not _ZERO.search(memoryview(buffer)):
        return []
    written = _parsed(buffer, dict.fromkeys(numbers, pa.string()), numbers)
    return [name for name in numbers if pc.any(pc.match_substring_regex(written.column(name), "^-?0[0-9]")).as_py()]


def _filled(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(labels, ""), pa.scalar(None, pa.string()), labels)


def are_whole_numbers(labels: pa.Array | pa.ChunkedArray) -> bool:
    """Whether labels are all written as whole numbers, and there is one. An empty one is none."""
    known = labels.drop_null()
    return len(known) > 0 and bool(pc.all(pc.match_substring_regex(known, "^(0|-?[1-9][0-9]{0,17})$")).as_py())


def _check_records(buffer: Any, where: str) -> None:
    """DataError for the rows that have more or fewer cells than the header, and for a quote out of place."""
    wrong: list[str] = []
    width, row, line = 0, 0, 1
    with _cells_of_any_size():
        records = csv.reader(io.StringIO(buffer.to_pybytes().decode(), newline=""), strict=True)
        while len(wrong) < _MOST_NAMED:
            try:
                cells = next(records, None)
            except csv.Error as error:
                wrong.append(f"{_row(where, row)} (line {line}): quotes are not closed or stand inside a cell: {error}")
                break
            if cells is None:
                break
            if cells and not width:
                width = len(cells)
            elif cells and len(cells) != width:
                wrong.append(
                    f"{_row(where, row)} (line {line}): {len(cells)} cells, the header has {width}; put a cell with "
                    "commas or line breaks in double quotes"
                )
            row, line = row + bool(cells), records.line_num + 1
    if wrong:
        raise DataError("\n".join(wrong))


def _row(where: str, number: int) -> str:
    return f"{where}, row {number}" if number else f"{where}, header"


def _place(beginning: bytes) -> str:
    """The row in which a file's beginning ends."""
    with _cells_of_any_size():
        records = csv.reader(io.StringIO(beginning.decode("latin-1") + "x", newline=""))
        row = sum(bool(cells) for cells in records) - 1
    return f"row {row}" if row > 0 else "the header"


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    before = csv.field_size_limit(_MOST_BLOCK)
    try:
        yield
    finally:
        csv.field_size_limit(before)
