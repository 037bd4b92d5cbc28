"""Rows as people give them: a request's value, a column's texts. Knows columns, not what they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json
from ray_lora.tasks.task import FILE_KINDS, Column, Features, Row, Task

if TYPE_CHECKING:
    import pyarrow as pa

BLANKS = (  # what Unicode calls white space, and what has no width at all
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad"
)
_MISSPELT = 0.85  # difflib's ratio of two spellings of one word: "textpair" and "text_pair" have 0.94
_MOST_SHOWN = 80  # characters of a text in a message


def answering(task: Task | type[Task]) -> tuple[str, ...]:
    """The columns that a row needs to be answered."""
    return tuple(name for name, column in task.columns.items() if column.required == "always")


def may_have(task: Task | type[Task]) -> tuple[str, ...]:
    """The columns that a row to be answered may have beside those that it needs."""
    return tuple(name for name, column in task.columns.items() if column.required == "optional")


def row_of(task: Task | type[Task], value: Json) -> Row:
    """A row to be answered, from a row or from the bare value of the task's `input`. It has the columns that it needs
    and those that it may have; others are left out.

    Raises:
        RecipeError: a column is missing, or one that may be there is misspelt.
    """
    bare = not isinstance(value, Mapping) or _is_file(task, value)
    given = {task.input: value} if bare else value
    needed = answering(task)
    for column in needed:
        if column not in given:
            shape = "{" + ", ".join(f"{name!r}: ..." for name in needed) + "}"
            alone = "write the value alone or " if needed == (task.input,) else "write "
            raise RecipeError(f"input {value!r} has no {column!r}; {alone}{shape}")
    check_spelling(task.columns, given)
    return {column: given[column] for column in (*needed, *may_have(task)) if column in given}


def check_spelling(columns: Mapping[str, Column], given: Collection[str]) -> None:
    """RecipeError where a name can only be meant for a column that may be missing: nobody else would notice."""
    absent = [name for name, column in columns.items() if column.required == "optional" and name not in given]
    for name in given:
        meant = get_close_matches(str(name), absent, n=1, cutoff=_MISSPELT) if name not in columns else []
        if meant:
            raise RecipeError(f"{name!r} is no column of this task; did you mean {meant[0]!r}?")


def _is_file(task: Task | type[Task], value: Mapping[str, Json]) -> bool:
    """Whether a mapping is a file as `datasets` writes one, {"bytes": ..., "path": ...}, and no row."""
    takes_files = not FILE_KINDS.isdisjoint(task.columns[task.input].kinds)
    return takes_files and "bytes" in value and task.input not in value


def count_cut(rows: Iterable[Features]) -> Counter[str]:
    """How many encoded rows are cut, by why."""
    return Counter(row["cut"] for row in rows if "cut" in row)


def bad_texts(column: pa.ChunkedArray, name: str = "text") -> Iterator[tuple[int, str]]:
    """The rows of a column, from 0, that are no text or a blank one."""
    return ((row, say_text(value, name)) for row, value in enumerate(column.to_pylist()) if not is_text(value))


def is_text(value: object) -> bool:
    """Whether a value is a string with something in it that can be read."""
    return isinstance(value, str) and bool(value.strip(BLANKS)) and unreadable(value) is None


def say_text(value: object, name: str = "text") -> str:
    """What to say of a value that is no text.

    Args:
        name: its column.
    """
    why = unreadable(value) if isinstance(value, str) else None
    return f"{name} {shown(value)} {why or 'is empty or not a string; give a non-empty string'}"


def say_unread(text: str) -> str:
    """What to say of a text of which a base reads nothing."""
    return f"nothing of the text {shown(text)} is a token of this base; leave the row out"


def shown(value: object) -> str:
    """A value in a message: what Python writes, not too much of it."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"


def unreadable(value: str) -> str | None:
    """What is wrong with characters that no written text has."""
    if "\0" in value:
        return "holds a NUL character; take it out, or write the file anew as UTF-8"
    if not value.isascii() and not _encodes(value):
        return "holds half of a surrogate pair; write the character whole, as UTF-8"
    return None


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
