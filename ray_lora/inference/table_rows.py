"""A table's rows on their way to adapters of any tasks: each task's columns, encoded once for all adapters of one spec.

    rows = TableRows(table, {"text": "review"})
    rows.features(task, [0, 7])      # features of each row, or a sentence that says what is wrong with it

It knows tables and tasks, no adapters and no engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from ray_lora.data.read import canonical
from ray_lora.errors import DataError, did_you_mean
from ray_lora.recipe import DataSpec
from ray_lora.tasks import Column, Features, Row, Task


class TableRows:
    """See the module.

    Args:
        columns: a task's column -> the table's column; those that a task does not have are not asked for by it.
        training: take the columns of rows that train and score too.
        keep: keep what is encoded, for further adapters of the same task.
    """

    def __init__(
        self, table: pa.Table, columns: Mapping[str, str] | None = None, *, training: bool = False, keep: bool = False
    ) -> None:
        self.table, self._columns, self._training, self._keep = table, dict(columns or {}), training, keep
        self._views: dict[type[Task], pa.Table | str] = {}
        self._kept: dict[int, dict[int, Features | str]] = {}

    def features(self, task: Task, rows: Sequence[int]) -> list[Features | str]:
        """Features of rows, by their number from 0; a sentence for one that this task cannot read."""
        kept = self._kept.setdefault(id(task), {}) if self._keep else {}
        missing = [row for row in dict.fromkeys(rows) if row not in kept]
        kept |= dict(zip(missing, self._encode(task, missing), strict=True))
        return [kept[row] for row in rows]

    def _encode(self, task: Task, rows: Sequence[int]) -> list[Features | str]:
        view = self._view(type(task))
        if isinstance(view, str) or not rows:
            return [str(view)] * len(rows)
        found: dict[int, Features | str] = {}
        whole: dict[int, Row] = {}
        for number, row in zip(rows, view.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
            empty = next((name for name, value in row.items() if value is None), None)
            if empty is None:
                whole[number] = row
            else:
                found[number] = f"column {self._columns.get(empty, empty)!r} is empty; fill it or leave the row out"
        found |= dict(zip(whole, encode_each(task, list(whole.values())), strict=True))
        return [found[number] for number in rows]

    def _view(self, task: type[Task]) -> pa.Table | str:
        if task not in self._views:
            try:
                self._views[task] = view(self.table, task, self._columns, training=self._training)
            except DataError as error:
                self._views[task] = str(error)
        return self._views[task]


def asked(task: type[Task], training: bool = False) -> dict[str, Column]:
    """A task's columns that a row to be answered has, or one that scores."""
    return {name: column for name, column in task.columns.items() if training or column.required != "training"}


def view(
    table: pa.Table, task: type[Task], columns: Mapping[str, str], *, training: bool = False, where: str = "the table"
) -> pa.Table:
    """The task's columns of a table under the task's names; DataError where one is missing."""
    wanted = asked(task, training)
    mapped = {name: column for name, column in columns.items() if name in wanted}
    return canonical(table, DataSpec(columns=mapped), wanted, where)


def encode_each(task: Task, rows: Sequence[Row]) -> list[Features | str]:
    """Features of rows, or what is wrong with a row; right ones are encoded together, as fast as if all were."""
    try:
        return list(task.encode(rows))
    except DataError as error:
        if len(rows) == 1:
            return [str(error)]
    half = len(rows) // 2
    return encode_each(task, rows[:half]) + encode_each(task, rows[half:])


def refs_of(table: pa.Table, column: str) -> list[str | None]:
    """What a column says of each row's adapter; a number is written as one. DataError where it is not there."""
    if column not in table.column_names:
        raise DataError(
            f"the table has no column {column!r} that names adapters; it has {', '.join(table.column_names)}"
            f"{did_you_mean(column, table.column_names)}"
        )
    return [None if value is None or value == "" else str(value) for value in table.column(column).to_pylist()]
