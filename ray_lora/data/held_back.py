"""Rows for training and rows that are held back to choose by, of a table that does not tell.

    train, validation = hold_back(table, 0.2, ["text"])

Rows that ask the same lie on one side, and of each label the same share, as far as there are rows. It knows tables.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa

from ray_lora.errors import DataError

LEAST = 10  # rows


def hold_back(
    table: pa.Table, share: float, inputs: Sequence[str], label: str | None = None
) -> tuple[pa.Table, pa.Table]:
    """(rows that train, rows held back), each in the table's order; the same every time.

    Args:
        inputs: columns that ask; rows with the same values in them stay together. label: of which each has its share.

    Raises:
        DataError: there are too few rows.
    """
    if table.num_rows < LEAST:
        raise DataError(f"{table.num_rows} rows are too few to hold some back; give at least {LEAST}, or two files")
    asked = list(map(repr, zip(*(table.column(name).to_pylist() for name in inputs), strict=True)))
    labels = [""] * table.num_rows if label is None else [repr(value) for value in table.column(label).to_pylist()]
    groups: dict[str, list[int]] = {}
    for row, one in enumerate(asked):
        groups.setdefault(one, []).append(row)
    kinds: dict[str, list[list[int]]] = {}
    for rows in groups.values():
        kinds.setdefault(labels[rows[0]], []).append(rows)
    held: set[int] = set()
    draw = random.Random("0")
    for kind in sorted(kinds):
        mine = kinds[kind]
        draw.shuffle(mine)
        wanted, taken = round(share * sum(map(len, mine))), 0
        for rows in mine[:-1]:  # one of each label trains
            if taken + len(rows) <= wanted:
                held.update(rows)
                taken += len(rows)
    if not held:
        raise DataError("every row asks the same, or every label has one row; none can be held back")
    return (
        table.take([row for row in range(table.num_rows) if row not in held]),
        table.take(sorted(held)),
    )
