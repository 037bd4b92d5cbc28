"""What a request gives as inputs, as rows of the task that reads them. Knows columns, no adapters and no HTTP.

An input of a task of one column is its bare value; of a task of more it may be a row. A picture or a sound is base64
text or {"bytes": base64 text}. Nothing is fetched: a URL is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ray_lora.errors import DataError
from ray_lora.recipe import Json
from ray_lora.tasks import Task, row_of
from ray_lora.tasks.rows import answering, is_text, may_have, say_text, shown
from ray_lora.tasks.task import FILE_KINDS, Row

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # no base64 has a colon


class TooManyInputsError(DataError):
    """One request holds more inputs than this endpoint takes."""


class TooLargeError(DataError):
    """The texts of one request are longer than this endpoint reads."""


def check_count(inputs: int, most: int, adapters: int = 1) -> None:
    """Raise unless a request holds inputs, and for all of its adapters not too many.

    Raises:
        DataError: none. TooManyInputsError: more than `most`.
    """
    if not inputs:
        raise DataError("inputs is an empty list; give at least one input")
    if inputs * adapters > most:
        each = f" for each of {adapters} adapters" if adapters > 1 else ""
        raise TooManyInputsError(f"{inputs} inputs{each} in one request; at most {most} are taken")


def check_size(letters: int, most: int) -> None:
    """Raise where a request's texts have more characters than may be read: all are, also what is then cut.

    Raises:
        TooLargeError: more than `most`.
    """
    if letters > most:
        raise TooLargeError(f"the texts of one request have {letters} characters; at most {most} are taken")


def check_texts(texts: Sequence[Json], most: int) -> None:
    """DataError unless each is a text that the bare base can read; TooLargeError: see `check_size`."""
    for text in texts:
        if not is_text(text):
            raise DataError(say_text(text))
    check_size(sum(map(len, texts)), most)


def rows_of(task: Task, inputs: Sequence[Json], most: int) -> tuple[list[Row], int]:
    """The inputs as rows, and how many characters their texts and files have.

    Args:
        most: characters that all of their texts may have.

    Raises:
        TooLargeError: they have more.
        DataError: one is a URL where a file is due, a file where none is, or no text that can be written.
        RecipeError: see `row_of`.
    """
    takes_files = bool(FILE_KINDS.intersection(task.columns[task.input].kinds))
    if not takes_files and any(map(_is_file, inputs)):
        raise DataError(f"a file was sent, and {task.spec.type} takes none; send its {task.input} in JSON, as inputs")
    bare = (*answering(task), *may_have(task)) == (task.input,)
    rows = [{task.input: value} if bare else row_of(task, value) for value in inputs]
    size = letters = 0
    for row in rows:
        for column, value in row.items():
            if isinstance(value, str):
                _check_text(value)
                is_file = bool(FILE_KINDS.intersection(task.columns[column].kinds))
                letters += 0 if is_file else len(value)
                if is_file and _URL.match(value):
                    raise DataError(
                        f"{column} {shown(value)} is a URL, and none is fetched; send the file's bytes, in base64 "
                        "or as a part of a form"
                    )
            size += len(value["bytes"]) if _is_file(value) else len(value) if isinstance(value, str) else 0
    check_size(letters, most)
    return rows, size


def _is_file(value: Json) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("bytes"), str)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError("a text holds half of a surrogate pair, which is not a character") from None
