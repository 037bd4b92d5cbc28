"""What an earlier run found out about large files, so that the next one need not read them: for as long as they, the
task's options and its code are as they were.

    known = recall(key, files)          # None: nothing, or not for these
    remember(key, known)

It knows values and the cache's folder; a key says what they stand for. Where files are, and with it a bucket's keys, is
not kept.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_lora.atomic import write_atomic
from ray_lora.data.files import File
from ray_lora.data.pieces import Piece
from ray_lora.data.row_cache import rows_folder
from ray_lora.recipe import Json, TaskSpec


@dataclass(frozen=True)
class Remembered:
    """Of a recipe's files.

    Attributes:
        task: its options, completed by the training rows.
        pieces: of each split.
        digests: of each split, the sha256 of each file's bytes.
        rows: of each split that was encoded whole, the rows of each piece.
    """

    task: TaskSpec
    pieces: Mapping[str, Sequence[Piece]]
    digests: Mapping[str, Sequence[str]]
    rows: Mapping[str, Sequence[int]]

    def sha256(self, split: str) -> str:
        """What `digest` gives for a split's files."""
        known = list(self.digests[split])
        return known[0] if len(known) == 1 else hashlib.sha256("".join(known).encode()).hexdigest()


def remember(key: str, known: Remembered) -> None:
    """Keep it; where the cache cannot be written, nobody will remember."""
    told = {
        "task": known.task.model_dump(mode="json"),
        "pieces": {split: [_piece(piece) for piece in pieces] for split, pieces in known.pieces.items()},
        "digests": {split: list(digests) for split, digests in known.digests.items()},
        "rows": {split: list(rows) for split, rows in known.rows.items()},
    }
    path = _path(key)
    with contextlib.suppress(OSError):
        write_atomic(path, json.dumps(told))


def recall(key: str, files: Mapping[str, Sequence[File]]) -> Remembered | None:
    """What is known under a key of these files; None where there is nothing that can be read."""
    try:
        told = json.loads(_path(key).read_text())
        return Remembered(
            TaskSpec.model_validate(told["task"]),
            {split: [_unpiece(piece, files[split]) for piece in pieces] for split, pieces in told["pieces"].items()},
            told["digests"],
            told["rows"],
        )
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException):
        return None


def forget() -> None:
    """Remove all that is remembered."""
    for path in _path("").parent.glob("*.json"):
        path.unlink(missing_ok=True)


def _path(key: str) -> Path:
    return rows_folder() / "known" / f"{key}.json"


def _piece(piece: Piece) -> dict[str, Json]:
    schema = piece.schema
    return {
        "number": piece.number,
        "groups": None if piece.groups is None else list(piece.groups),
        "first": piece.first,
        "rows": piece.rows,
        "skipped": piece.skipped,
        "schema": None if schema is None else base64.b64encode(schema.serialize().to_pybytes()).decode(),
    }


def _unpiece(told: Mapping[str, Any], files: Sequence[File]) -> Piece:
    schema = told["schema"]
    return Piece(
        files[told["number"]],
        told["number"],
        None if told["groups"] is None else tuple(told["groups"]),
        told["first"],
        told["rows"],
        told["skipped"],
        None if schema is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))),
    )
