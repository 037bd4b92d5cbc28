"""Interactions as histories: in time order, the latest held out, and nothing from later in any row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_lora.data.interactions import HELD_BACK, leave_last_out
from ray_lora.errors import DataError

ORDER = ["train", "validation", "test"]


def table(rows: list[tuple[Any, ...]], names: tuple[str, ...] = ("user", "item", "timestamp")) -> pa.Table:
    return pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)})


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 6)), min_size=1), st.integers(1, 4))
def test_no_row_holds_anything_from_later(rows: list[tuple[int, int, int]], longest: int) -> None:
    """The oracle: each user's rows sorted by time, items of one time in the table's order. `next` of validation and
    test rows are positions that the training rows do not reach, and every earlier position is learned from once."""
    histories = {user: [item for _, item, _ in sorted((r for r in rows if r[0] == user), key=lambda r: r[2])]
                 for user in {user for user, _, _ in rows}}  # fmt: skip
    enough = {user: items for user, items in histories.items() if len(items) >= 4}
    if not enough:
        with pytest.raises(DataError, match=r"none of .* users has 4 items"):
            leave_last_out(table(rows))
        return
    splits = leave_last_out(table(rows), longest=longest)
    assert list(splits) == ORDER
    for split in ("validation", "test"):
        found = {row["user"]: (row["items"], row["next"]) for row in splits[split].to_pylist()}
        back = HELD_BACK[split]
        assert found == {user: (items[:-back], items[-back]) for user, items in enough.items()}
    for user, items in enough.items():
        mine = [row for row in splits["train"].to_pylist() if row["user"] == user]
        assert all(1 <= len(row["items"]) <= longest for row in mine)
        learned = [item for row in mine[::-1] for item in [*row["items"][1:], row["next"]]]
        assert learned == items[1:-2], "an item that is held out is learned from, or one is forgotten"
    (only,) = {row["user"]: row for row in leave_last_out(table([(1, at, at) for at in range(6)]))["train"].to_pylist()
               }.values()  # fmt: skip
    assert (only["items"], only["next"]) == ([0, 1, 2], 3)


def test_low_ratings_are_left_out_and_ids_keep_their_type() -> None:
    rows = [("ann", f"film {at}", 9 - at, float(at)) for at in range(6)]
    found = leave_last_out(table(rows, ("who", "film", "when", "stars")), "who", "film", "when", "stars", 1.0)
    assert found["test"].to_pylist() == [
        {"who": "ann", "items": ["film 5", "film 4", "film 3", "film 2"], "next": "film 1"}
    ]


@pytest.mark.parametrize(
    ("rows", "options", "why"),
    [
        ([(1, 2, None)], {}, r"the table, row 1: column 'timestamp' is empty"),
        ([(1, 2, 3), (1, None, 3)], {}, r"the table, row 2: column 'item' is empty"),
        ([(1, 2, 3.0), (1, 2, float("nan"))], {"where": "clicks.csv"}, r"clicks.csv, row 2: timestamp nan is no time"),
        ([(1, 2, 3)], {"time": "timestmap"}, r"no column 'timestmap'; it has .* did you mean 'timestamp'"),
        ([(1, "a", 3)], {"rating": "item"}, r"row 1: item 'a' is no number"),
        ([(1, at, at) for at in range(3)], {}, "none of 1 users has 4 items"),
    ],
)
def test_wrong_tables_are_named(rows: list[tuple[Any, ...]], options: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        leave_last_out(table(rows), **options)
