"""Rows as people give them: a request's value, a column's texts. Knows columns, not what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json
from ray_lora.tasks.task import Row, Task

if TYPE_CHECKING:
    import pyarrow as pa


def answering(task: Task | type[Task]) -> tuple[str, ...]:
    """The columns that a row needs to be answered."""
    return tuple(name for name, column in task.columns.items() if column.required == "always")


def row_of(task: Task | type[Task], value: Json) -> Row:
    """A row to be answered, from a row or from the bare value of the task's `input`; other columns are left out.

    Raises:
        RecipeError: a column is missing.
    """
    given = value if isinstance(value, Mapping) else {task.input: value}
    needed = answering(task)
    for column in needed:
        if column not in given:
            shape = "{" + ", ".join(f"{name!r}: ..." for name in needed) + "}"
            alone = "write the value alone or " if needed == (task.input,) else "write "
            raise RecipeError(f"input {value!r} has no {column!r}; {alone}{shape}")
    return {column: given[column] for column in needed}


def bad_texts(column: pa.ChunkedArray) -> Iterator[tuple[int, str]]:
    """The rows of a column, from 0, that are no text or an empty one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        empty = pc.equal(pc.utf8_trim_whitespace(column), "").to_pylist()
        return ((row, say_text(column[row].as_py())) for row, bad in enumerate(empty) if bad)
    return ((row, say_text(value)) for row, value in enumerate(column.to_pylist()) if not is_text(value))


def is_text(value: object) -> bool:
    """Whether a value is a string with something in it."""
    return isinstance(value, str) and bool(value.strip())


def say_text(value: object) -> str:
    """What to say of a value that is no text."""
    return f"text {value!r} is empty or not a string; give a non-empty string"
