"""Jsonl files: a value on each line, or an object on each line as the rows of a table. Texts and numbers stay what is
written: a date is a text, 1 and 1.0 are not mixed in a column of labels.

    table = read_jsonl(buffer, {"label": Column(("label",))}, "train.jsonl")
    values(buffer, "inputs.jsonl")                 # ["what a lovely day", {"text": "what a day"}]

It knows lines and JSON; it knows nothing of what rows mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from ray_lora.data.text_file import utf8
from ray_lora.errors import DataError
from ray_lora.recipe import Json
from ray_lora.tasks import Column

_KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a fraction", list: "a list"}


def values(buffer: Any, where: str) -> list[Json]:
    """The value on each line that is not blank.

    Raises:
        DataError: a line is not JSON, or the file is not UTF-8.
    """
    return [value for _, value in _lines(buffer, where)]


def read_jsonl(buffer: Any, roles: Mapping[str, Column], where: str) -> pa.Table:
    """Objects as a table; a key that a line lacks is a null there.

    Args:
        roles: what the file's columns are to the task. One that is nothing to it, and of several types, is empty.

    Raises:
        DataError: a line is no object, a value cannot be kept as it is, or a column changes its type.
    """
    lines: list[int] = []
    columns: dict[str, list[Json]] = {}
    for number, row in _lines(buffer, where):
        if not isinstance(row, dict):
            raise DataError(
                f"{where}, line {number} is {_kind(row)}; give one object a line, such as {{'text': 'a lovely day'}}"
            )
        for name, value in row.items():
            if name not in columns:
                columns[name] = [None] * len(lines)
            columns[name].append(value)
        lines.append(number)
        for cells in columns.values():
            if len(cells) < len(lines):
                cells.append(None)
    return pa.table({name: _column(name, cells, lines, roles, where) for name, cells in columns.items()})


def _column(name: str, cells: list[Json], lines: list[int], roles: Mapping[str, Column], where: str) -> pa.Array:
    kinds = roles[name].kinds if name in roles else ()
    try:
        if {"text", "label"} & set(kinds):
            _check_types(name, cells, lines, where)
        return pa.array(cells)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        if roles and name not in roles:
            return pa.nulls(len(cells))
        _check_types(name, cells, lines, where)
        at, wrong = _first_that_fails(cells)
        raise DataError(f"{where}, line {lines[at]}: {name!r} cannot be kept as it is: {wrong}") from None


def _first_that_fails(cells: list[Json]) -> tuple[int, Exception]:
    """The first cell that makes no column with those before it, and why; there is one."""
    right, wrong = 0, len(cells)  # the first so many make a column, the first so many do not
    why: Exception = ValueError()
    while wrong - right > 1 or not why.args:
        middle = (right + wrong) // 2 if wrong - right > 1 else wrong
        try:
            pa.array(cells[:middle])
            right = middle
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            wrong, why = middle, error
    return wrong - 1, why


def _check_types(name: str, cells: list[Json], lines: list[int], where: str) -> None:
    """DataError for the first value of another type than the column's first."""
    first: tuple[int, Json] | None = None
    for number, cell in zip(lines, cells, strict=True):
        if cell is None:
            continue
        if first is None:
            first = number, cell
        elif type(cell) is not type(first[1]):
            raise DataError(
                f"{where}, line {number}: {name!r} is {_kind(cell)}, in line {first[0]} it is {_kind(first[1])}; "
                "write all rows alike"
            )


def _kind(value: Json) -> str:
    return "null" if value is None else _KINDS.get(type(value), "an object")


def _lines(buffer: Any, where: str) -> Iterator[tuple[int, Json]]:
    """(number, value) of each line that is not blank. Only a line feed ends one: JSON may hold all others in a text."""
    data = utf8(buffer, where, lambda beginning: f"line {beginning.count(10) + 1}").to_pybytes()
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line.decode(), object_pairs_hook=_object, parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"data file {where!r} is broken at line {number}: {error}; write one JSON value a line"
                ) from None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"two keys of one name among {[name for name, _ in pairs]}")
    return found


def _refuse(name: str) -> Json:
    raise ValueError(f"{name} is not JSON; write null")
