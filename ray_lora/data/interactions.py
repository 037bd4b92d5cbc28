"""Tables of interactions (who took what, when) as histories, each user's latest items held out.

    splits = leave_last_out(table)       # columns user, item, timestamp; csv, jsonl and parquet files by data.read.read
    splits["train"]                      # user, items, next

Of each user's items in time order `next` is the last in the test rows, the last but one in the validation rows and the
one before in the training rows; `items` are those before it. So no row holds anything that came after what it asks for,
and what validation and test rows ask for is nowhere in the training rows of that user. It knows columns, no bases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ray_lora.data.check import raise_wrong
from ray_lora.data.times import sort_keys
from ray_lora.errors import DataError, did_you_mean

HELD_BACK: Mapping[str, int] = {"train": 3, "validation": 2, "test": 1}  # items from the end on which `next` is
LEAST = max(HELD_BACK.values()) + 1  # items of a user, so that the shortest history has one


def leave_last_out(
    table: pa.Table,
    user: str = "user",
    item: str = "item",
    time: str = "timestamp",
    rating: str | None = None,
    least_rating: float = 0.0,
    longest: int | None = None,
    where: str = "the table",
) -> dict[str, pa.Table]:
    """Rows of each split, users in the order in which they first come.

    Args:
        user, item, time: columns. Items of one time are in the table's order; texts are times as they say
            (`data.times`).
        rating, least_rating: interactions rated lower are left out, where there is such a column.
        longest: items of a training row; a longer history becomes several rows, each of the items behind those of the
            row before, so that all of it is learned from. None: one row a user, of which a base reads the latest.
        where: what the table is called in messages.

    Users of fewer than four items are in no split.

    Raises:
        DataError: a column is missing, rows are wrong (which, and why), or nobody has four items.
    """
    names = [user, item, time] + ([rating] if rating is not None else [])
    for name in names:
        if name not in table.column_names:
            have = ", ".join(table.column_names)
            raise DataError(f"{where} has no column {name!r}; it has {have}{did_you_mean(name, table.column_names)}")
    values = {name: table.column(name).to_pylist() for name in names}
    raise_wrong([(where, list(_wrong(values, (user, item), time, rating)))])
    taken: dict[Any, list[tuple[Any, int]]] = {}
    for row, (who, when) in enumerate(zip(values[user], sort_keys(values[time], time, where), strict=True)):
        mine = taken.setdefault(who, [])
        if rating is None or values[rating][row] >= least_rating:
            mine.append((when, row))
    try:
        ordered = {who: [values[item][row] for _, row in sorted(mine)] for who, mine in taken.items()}
    except TypeError as error:
        raise DataError(f"{where}: column {time!r} holds values that have no order: {error}") from None
    enough = {who: items for who, items in ordered.items() if len(items) >= LEAST}
    if not enough:
        raise DataError(
            f"{where}: none of {len(ordered)} users has {LEAST} items; one is asked for in each split, and one is "
            "before them"
        )
    whole = {
        split: [(who, items[: len(items) - back + 1]) for who, items in enough.items()]
        for split, back in HELD_BACK.items()
    }
    if longest is not None:
        whole["train"] = [(who, part) for who, items in whole["train"] for part in _stretches(items, longest)]
    kinds = {name: _id_type(table.schema.field(column).type) for name, column in (("user", user), ("item", item))}
    return {
        split: pa.table(
            {
                user: pa.array([who for who, _ in rows], kinds["user"]),
                "items": pa.array([items[:-1] for _, items in rows], pa.list_(kinds["item"])),
                "next": pa.array([items[-1] for _, items in rows], kinds["item"]),
            }
        )
        for split, rows in whole.items()
    }


def _id_type(kind: pa.DataType) -> pa.DataType:
    """Whole numbers that were kept as fractions are whole numbers again."""
    return pa.int64() if pa.types.is_floating(kind) else kind


def _stretches(items: list[Any], longest: int) -> list[list[Any]]:
    """Pieces from the end on whose last item is the next one's first: every item but the first is asked for once."""
    return [items[max(0, end - longest) : end + 1] for end in range(len(items) - 1, 0, -longest)]


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and not value.is_integer()  # pandas makes floats of ids beside empty ones


def _wrong(
    values: Mapping[str, list[Any]], ids: Sequence[str], time: str, rating: str | None
) -> Iterator[tuple[int, str]]:
    for row, found in enumerate(zip(*values.values(), strict=True)):
        told = dict(zip(values, found, strict=True))
        empty = next((name for name, value in told.items() if value is None), None)
        if empty is not None:
            yield row, f"column {empty!r} is empty; fill it or leave the row out"
        elif (odd := next((name for name in ids if _is_fraction(told[name])), None)) is not None:
            yield row, f"{odd} {told[odd]!r} is no id; an id is a whole number or a text"
        elif isinstance(told[time], float) and not math.isfinite(told[time]):
            yield row, f"{time} {told[time]!r} is no time"
        elif rating is not None and (not isinstance(told[rating], (int, float)) or math.isnan(told[rating])):
            yield row, f"{rating} {told[rating]!r} is no number"
