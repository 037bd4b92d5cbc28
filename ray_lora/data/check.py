"""Rows are checked, and what they teach is learned, a block at a time: on one machine, or each block where it lies.

    spec = learn(task, spec, blocks)               # labels that the recipe leaves to the data
    check_table(task, spec, table, "train.csv")    # DataError: train.csv, row 3: text '' is empty ...

It knows tables and asks the task; it knows nothing of files' formats, of encodings, engines or Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from ray_lora.errors import DataError
from ray_lora.recipe import TaskSpec
from ray_lora.tasks import Task, build_task, task_of

MOST_NAMED = 10  # wrong rows in one message


@runtime_checkable
class Knowing(Protocol):
    """What a `Task` has beside whose base has a vocabulary that rows may leave."""

    def unknown(self, block: pa.Table) -> Iterator[tuple[int, str]]:
        """As `check`: the rows that are right by themselves and hold what this task's base does not know."""
        ...


def on_base(spec: TaskSpec, processor: Any) -> Task | type[Task]:
    """What `check_tables` is to ask: the task on this base, where that knows more than the task alone.

    Args:
        spec: complete. processor: the base's; None where it is not known, or there is none.
    """
    task = task_of(spec)
    return build_task(spec, processor) if processor is not None and hasattr(task, "unknown") else task


def learn(task: Task | type[Task], spec: TaskSpec, blocks: Iterable[pa.Table]) -> TaskSpec:
    """The options, completed by what blocks of training rows teach; DataError when that is too little."""
    return task.merge(spec, [task.learn(spec, block) for block in blocks])


def wrong_rows(task: Task | type[Task], spec: TaskSpec, block: pa.Table, first: int = 0) -> list[tuple[int, str]]:
    """(number of the row, what is wrong with it) of a block whose first row has the number `first`.

    A row that lacks a value is not looked at further. A task that is built for a base, and not its class alone, is
    asked too what of the rows this base does not know (`Knowing`).
    """
    wrong: dict[int, str] = {}
    for column in block.column_names:
        values = block.column(column)
        if values.null_count:
            for row, empty in enumerate(values.is_null().to_pylist()):
                if empty:
                    wrong.setdefault(row, f"column {column!r} is empty; fill it or leave the row out")
    whole = [row for row in range(block.num_rows) if row not in wrong] if wrong else None
    rest = block if whole is None else block.take(pa.array(whole, pa.int64()))
    unknown = task.unknown(rest) if not isinstance(task, type) and isinstance(task, Knowing) else ()
    for row, why in chain(task.check(spec, rest), unknown):
        wrong.setdefault(row if whole is None else whole[row], why)
    return [(first + row, wrong[row]) for row in sorted(wrong)]


def raise_wrong(found: Iterable[tuple[str, Sequence[tuple[int, str]]]], more: int = 0) -> None:
    """DataError that names the first wrong rows of files, each counted from 1 in its file, if there are any.

    Args:
        found: (file, its wrong rows), in the files' order.
        more: wrong rows that were found beyond these.
    """
    wrong = [(where, row, why) for where, rows in found for row, why in rows]
    if wrong:
        lines = [f"{where}, row {row + 1}: {why}" for where, row, why in wrong[:MOST_NAMED]]
        files = {where for where, *_ in wrong}
        more += len(wrong) - len(lines)
        among = f"in {wrong[0][0]}" if len(files) == 1 else f"in {len(files)} files"
        raise DataError("\n".join(lines + ([f"and {more} more wrong rows {among}"] if more else [])))


def check_table(task: Task | type[Task], spec: TaskSpec, table: pa.Table, where: str) -> None:
    """DataError for the wrong rows of a table."""
    check_tables(task, spec, [(where, table)])


def check_tables(task: Task | type[Task], spec: TaskSpec, tables: Iterable[tuple[str, pa.Table]]) -> None:
    """DataError for the wrong rows of files' tables, the first of them over all files."""
    raise_wrong((where, wrong_rows(task, spec, table)) for where, table in tables)


def say_cut(where: str, cut: Counter[str], total: int) -> list[str]:
    """What people are told of it: "tweets, train: 3 of 1,024 rows are longer than ... tokens, and are cut"."""
    return [f"{where}: {count:,} of {total:,} rows are {why} and are cut" for why, count in cut.items()]
