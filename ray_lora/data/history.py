"""The rows of people, from the table that they began with and from what came since.

    history = History(recipe.data, task_of(recipe.task).columns, recipe.personal)
    history.add(recipe.data.train)                 # everyone's rows so far
    history.add("new/2026-11-28.parquet")          # ["alice", "bob"]: whose rows those are
    table, mine = history.rows_of(["alice"])       # her rows, earliest first

What is added later is later; `personal.order` orders the rows of the first addition, those of others stand as they
came. Everything that was added is kept in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_lora.data.people import find_people
from ray_lora.data.read import canonical
from ray_lora.data.rows import read_rows
from ray_lora.data.sent_files import GROUP, PERSON
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec, PersonalSpec
from ray_lora.tasks import Column
from ray_lora.tasks.labels import as_seen


@dataclass(frozen=True)
class _Part:
    """One addition: its rows, and by person which of them are whose, earliest first."""

    tables: tuple[tuple[str, pa.Table], ...]
    table: pa.Table
    rows: Mapping[str, Sequence[int]]


class History:
    """See the module.

    Args:
        columns: the task's.
    """

    def __init__(self, data: DataSpec, columns: Mapping[str, Column], spec: PersonalSpec) -> None:
        self._data, self._columns, self._spec = data, columns, spec
        self._parts: list[_Part] = []
        self.groups: dict[str, str | None] = {}
        self._spelt: dict[str, str] = {}  # how each person's key is written

    def add(self, given: str | Sequence[str], leave_out: Callable[[str], bool] = lambda _: False) -> list[str]:
        """Add the rows of files that have the recipe's columns; whose they are.

        Args:
            leave_out: whether a key is one whose rows there are nobody's any more.

        Raises:
            DataError: a file, a column or a row is wrong, or somebody was in another group so far.
        """
        spec = self._spec if not self._parts else self._spec.model_copy(update={"order": None})
        people = [person for person in find_people(given, spec) if not leave_out(person.key)]
        read = read_rows(given, self._data, self._columns)
        whose = {person.key: person.rows.tolist() for person in people}
        return self._keep(read.tables, whose, {person.key: person.group for person in people}, read.given)

    def add_sent(self, files: Sequence[Path]) -> list[str]:
        """Add the rows of files that an endpoint wrote (`serving/http/sent_rows.py`), which have the task's own column
        names; whose they are.

        Raises:
            DataError: as `add`; somebody is new and of no group, where the recipe has groups.
        """
        tables, whose, groups, first = [], dict[str, list[int]](), dict[str, str | None](), 0
        for file in files:
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for number, row in enumerate(rows):
                person, group = row.pop(PERSON), row.pop(GROUP, None)
                whose.setdefault(person, []).append(first + number)
                if group is not None or person not in groups:
                    groups[person] = self.groups.get(person) if group is None else group
            tables.append((file.name, canonical(pa.Table.from_pylist(rows), DataSpec(), self._columns, file.name)))
            first += len(rows)
        given = ", ".join(file.name for file in files[:3]) + (" and more" if len(files) > 3 else "")
        for person, group in groups.items():
            if group is None and self._spec.group is not None:
                raise DataError(f"{given}: {person!r} is new; say the group too ({self._spec.group})")
        grouped = groups if self._spec.group is not None else dict.fromkeys(groups, None)
        return self._keep(tuple(tables), whose, grouped, given)

    def _keep(
        self,
        tables: tuple[tuple[str, pa.Table], ...],
        whose: Mapping[str, Sequence[int]],
        groups: Mapping[str, str | None],
        given: str,
    ) -> list[str]:
        for person, group in groups.items():
            if self.groups.get(person, group) != group:
                was = self.groups[person]
                raise DataError(
                    f"{given}: {person!r} is in {self._spec.group} {group!r} and was in {was!r}; give each person one"
                )
        spelt = {as_seen(person): person for person in groups}
        known = spelt | self._spelt
        other = next((person for person in groups if known[as_seen(person)] != person), None)
        if other is not None:
            raise DataError(
                f"{given}: {other!a} and another person differ only in blanks around them or in how Unicode writes "
                "them; write them alike"
            )
        self._spelt |= spelt
        self.groups.update(groups)
        whole = pa.concat_tables([table for _, table in tables], promote_options="permissive")
        self._parts.append(_Part(tables, whole, whose))
        return list(whose)

    @property
    def newest(self) -> tuple[tuple[str, pa.Table], ...]:
        """(name, rows) of each file of the last addition."""
        return self._parts[-1].tables

    def forget_newest(self) -> None:
        """Take the last addition back."""
        self._parts.pop()

    def rows_of(self, people: Sequence[str]) -> tuple[pa.Table, dict[str, list[int]]]:
        """All rows of some people as one table, and which of them are whose, earliest first."""
        pieces, mine, first = [], {person: list[int]() for person in people}, 0
        for part in self._parts:
            found = {person: part.rows[person] for person in people if person in part.rows}
            if found:
                pieces.append(part.table.take(np.concatenate([np.asarray(rows) for rows in found.values()])))
            for person, rows in found.items():
                mine[person] += range(first, first + len(rows))
                first += len(rows)
        return pa.concat_tables(pieces, promote_options="permissive"), mine
