"""Whose each row is: the people of a table, with their rows in the order of time.

    people = find_people(recipe.data.train, recipe.personal)
    people[0].key, people[0].group, people[0].rows          # "alice", "berlin", [3, 9, 17, ...]

A person's key is data: any word, number, truth value or date. It knows columns, not what rows mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_lora.data.rows import Rows, read_rows
from ray_lora.data.times import sort_keys
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import DataSpec, PersonalSpec
from ray_lora.tasks import Column
from ray_lora.tasks.labels import label_word, twins

_KEY, _GROUP, _ORDER = "personal.key", "personal.group", "personal.order"
_LONGEST = 512  # characters of a key


@dataclass(frozen=True)
class Person:
    """One person.

    Attributes:
        key: as a word. group: the group's, None where there are no groups.
        rows: numbers of the person's rows in the whole table, earliest first, [rows].
    """

    key: str
    group: str | None
    rows: NDArray[np.int64]


def find_people(given: str | Sequence[str], spec: PersonalSpec) -> list[Person]:
    """All people of the files that paths mean, by key.

    Raises:
        RecipeError: no column is named.
        DataError: a column is missing, a row is nobody's or was at no time, or a person is in two groups.
    """
    key = key_of(spec)
    named = {_KEY: key, _GROUP: spec.group, _ORDER: spec.order}
    columns = {role: name for role, name in named.items() if name is not None}
    kinds = {role: Column(("time",) if role == _ORDER else ("label",), about=role) for role in columns}
    rows = read_rows(given, DataSpec(columns=columns), kinds)
    keys, whose = words_of(rows, _KEY, key)
    order = _in_time(rows, whose, spec.order)
    groups, grouped = words_of(rows, _GROUP, spec.group) if spec.group is not None else ([], None)
    people = []
    for word, mine in zip(keys, _parts(whose[order], order, len(keys)), strict=True):
        group = None
        if grouped is not None:
            found = np.unique(grouped[mine])
            if len(found) > 1:
                names = ", ".join(repr(groups[at]) for at in found[:3])
                raise DataError(f"{rows.given}: {key} {word!r} is in several groups: {names}; give each person one")
            group = groups[found[0]]
        people.append(Person(word, group, mine))
    return sorted(people, key=lambda person: person.key)


def check_apart(people: Sequence[Person], given: str | Sequence[str]) -> None:
    """DataError where two keys look like one person's: each would learn from a part of the rows."""
    other = twins(person.key for person in people)
    if other:
        one = min(other)
        raise DataError(
            f"{given}: the people {one!a} and {other[one]!a} differ only in blanks around them or in how Unicode "
            "writes them; write them alike"
        )


def key_of(spec: PersonalSpec) -> str:
    """The column that says whose a row is; RecipeError where none is named."""
    if spec.key is None:
        raise RecipeError("personal.key names no column; set it to the column that says whose a row is")
    return spec.key


def _parts(whose: NDArray[np.int64], order: NDArray[np.int64], people: int) -> Iterator[NDArray[np.int64]]:
    """Each person's row numbers; `whose` ascends."""
    ends = np.searchsorted(whose, np.arange(people + 1))
    return (order[begin:end] for begin, end in pairwise(ends.tolist()))


def words_of(rows: Rows, role: str, name: str) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct words of a column, and which of them each row has, [rows].

    Values of one word are one person: 7 in one file and "7" in another.
    """
    values = pa.chunked_array([chunk for _, table in rows.tables for chunk in table.column(role).chunks])
    _whole(rows, role, name)
    encoded = values.combine_chunks().dictionary_encode()
    words: dict[str, int] = {}
    where: list[int] = []
    for value in encoded.dictionary.to_pylist():
        word = _word(value, rows, role, name)
        where.append(words.setdefault(word, len(words)))
    return list(words), np.asarray(where, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]


def _word(value: Any, rows: Rows, role: str, name: str) -> str:
    try:
        word = label_word(value)
    except DataError as error:
        raise DataError(f"{_row_of(rows, role, value)}: {name}: {error}") from None
    if len(word) > _LONGEST:
        raise DataError(
            f"{_row_of(rows, role, value)}: {name} has {len(word)} characters; at most {_LONGEST} may name one"
        )
    return word


def _row_of(rows: Rows, role: str, value: Any) -> str:
    """The first row with a value, as messages name it."""
    for where, table in rows.tables:
        for row, found in enumerate(table.column(role).to_pylist()):
            if found == value:
                return f"{where}, row {row + 1}"
    return rows.given


def _whole(rows: Rows, role: str, name: str) -> None:
    """DataError for the first row whose value is null."""
    for where, table in rows.tables:
        column = table.column(role)
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise DataError(f"{where}, row {row + 1}: {name} is empty; fill it or leave the row out")


def _in_time(rows: Rows, whose: NDArray[np.int64], name: str | None) -> NDArray[np.int64]:
    """Row numbers by person, and for each by time; those of one time as they stand."""
    if name is None:
        return np.argsort(whose, kind="stable").astype(np.int64)
    _whole(rows, _ORDER, name)
    times = pa.concat_tables([table.select([_ORDER]) for _, table in rows.tables]).column(_ORDER)
    if pa.types.is_floating(times.type) and not pc.all(pc.is_finite(times)).as_py():
        raise DataError(f"{rows.given}: {name} holds what is no finite number; rows are ordered by it")
    if pa.types.is_nested(times.type):
        raise DataError(f"{rows.given}: {name} holds {times.type}; order rows by times, dates or numbers")
    if pa.types.is_string(times.type) or pa.types.is_large_string(times.type):
        keys = np.asarray(sort_keys(times.to_pylist(), name, rows.given), object)
        return np.lexsort((np.unique(keys, return_inverse=True)[1], whose)).astype(np.int64)
    rank = pc.rank(times.combine_chunks(), sort_keys="ascending", tiebreaker="dense").to_numpy()
    return np.lexsort((rank, whose)).astype(np.int64)
