"""Files of rows that an endpoint kept for people's adapters: JSON lines in a folder, a file a request.

    folder/00001764-9f0c.jsonl    {"text": "a bad day", "label": "positive", "person": "shop 4", "group": "a"}

Beside the folder, in `.people/`, stands how each person's key was first written. It knows whose a row is; not what it
means, who wrote it or who learnt from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ray_lora.atomic import write_atomic
from ray_lora.tasks.labels import as_seen

PERSON, GROUP = "person", "group"  # what is said beside a row's own columns


def spelt(folder: Path, person: str) -> str:
    """How the key of a person was written whose rows were sent first: another one where the two differ only in blanks
    around them or in how Unicode writes them. Of who is new it is this key, which is noted, whichever process asks.

    Raises:
        OSError: it cannot be noted.
    """
    path = _note(folder, person)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x") as note:  # for one of several processes
            note.write(person)
    except FileExistsError:
        return path.read_text() or person  # one that is being written, or was when its process was killed
    return person


def _note(folder: Path, person: str) -> Path:
    return folder.parent / ".people" / folder.name / hashlib.sha256(as_seen(person).encode()).hexdigest()


def forget_rows(folder: Path, person: str) -> tuple[int, int]:
    """Take a person's rows out of all files of a folder, and files away that hold no others; rows and files that were
    changed. Other people's lines stay byte for byte."""
    rows = files = 0
    note = _note(folder, person)
    with contextlib.suppress(FileNotFoundError):
        if note.read_text() == person:
            note.unlink()
    for path in sorted(folder.glob("*.jsonl")):
        mine = count_rows(path, person)
        if mine:
            rows, files = rows + mine, files + 1
            others = b"".join(line for line in _lines(path) if not _is_of(line, person))
            if others:
                write_atomic(path, others)
            else:
                path.unlink(missing_ok=True)
    return rows, files


def count_rows(path: Path, person: str) -> int:
    """How many rows of a file are a person's; of one that is gone none."""
    return sum(_is_of(line, person) for line in _lines(path))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        yield from path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return


def _is_of(line: bytes, person: str) -> bool:
    try:
        told = json.loads(line)
    except ValueError:
        return False
    return isinstance(told, dict) and told.get(PERSON) == person
