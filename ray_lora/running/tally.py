"""What actors of a run are told, and where they say how far they are.

    tally = ray.remote(Tally).remote(None, rows, {})
    ray.get(tally.told.remote(3, Done(rows=100, errors=1)))     # whether the run may go on

It knows pieces and counts; nothing heavy is imported for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_lora.data.pieces import Piece
from ray_lora.inference.pinned import Pinned
from ray_lora.recipe import Json
from ray_lora.running.parts import Format, Parts
from ray_lora.tasks import Column

MOST_NAMED = 10  # wrong rows in one message


@dataclass(frozen=True)
class Work:
    """What all actors of a run are told.

    Attributes:
        pieces: all of the run's. roles: what the files' columns are.
        adapter: the ref of all rows, else `adapter_column` names each row's.
        tally: the actor that counts (`Tally`).
    """

    pieces: Sequence[Piece]
    roles: Mapping[str, Column]
    store: str
    tracking_uri: str | None
    pinned: Pinned
    adapter: str | None
    adapter_column: str | None
    base: str | None
    columns: Mapping[str, str]
    parameters: Mapping[str, Json]
    prefix: str
    slots: int
    dtype: str
    output: str
    format: Format
    tally: Any


@dataclass
class Done:
    """What became of a piece so far.

    Attributes:
        adapters: refs with their versions, and how many rows they answered.
        wrong: what is said of the first wrong rows. whole: its file is there.
    """

    rows: int = 0
    errors: int = 0
    cut: int = 0
    adapters: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    whole: bool = False


class Tally:
    """How far a run is, piece by piece: a piece that is begun again counts once.

    Args:
        most: rows that may have errors; None: a share of `rows`, or of those that are done where that is not known.
    """

    SHARE, LEAST = 0.01, 100  # of the rows, and never fewer

    def __init__(self, most: int | None, rows: int | None, done: Mapping[int, Done]) -> None:
        self._most, self._rows, self._done = most, rows, dict(done)

    def told(self, number: int, done: Done) -> bool:
        """Take a piece's counts; whether the run may go on."""
        self._done[number] = done
        return not self.exceeded()

    def allowed(self) -> int:
        """How many rows may have errors."""
        if self._most is not None:
            return self._most
        rows = self._rows if self._rows is not None else sum(done.rows for done in self._done.values())
        return max(self.LEAST, int(self.SHARE * rows))

    def exceeded(self) -> bool:
        return sum(done.errors for done in self._done.values()) > self.allowed()

    def state(self) -> dict[str, Any]:
        """Rows, errors, rows that are cut, answered rows of each adapter, and the first wrong rows."""
        all_done = self._done.values()
        adapters = sum((done.adapters for done in all_done), Counter[str]())
        wrong = [line for number in sorted(self._done) for line in self._done[number].wrong]
        return {
            "rows": sum(done.rows for done in all_done),
            "errors": sum(done.errors for done in all_done),
            "cut": sum(done.cut for done in all_done),
            "pieces": sum(done.whole for done in all_done),
            "adapters": dict(sorted(adapters.items())),
            "wrong": wrong[:MOST_NAMED],
            "exceeded": self.exceeded(),
            "allowed": self.allowed(),
        }


def count(parts: Parts, number: int, piece: Piece, prefix: str) -> Done | None:
    """What a part that was written before holds; None where it must be made again."""
    names = [f"{prefix}{name}" for name in ("adapter", "version", "error")]
    table = parts.read(number, names)
    if table is None:
        return None
    done = Done(table.num_rows, whole=True)
    for row, (name, version, error) in enumerate(zip(*(table.column(at).to_pylist() for at in names), strict=True)):
        if error is None:
            done.adapters[f"{name}@{version}"] += 1
        else:
            done.errors += 1
            done.wrong += [say(piece, row, error)] if len(done.wrong) < MOST_NAMED else []
    return done


def say(piece: Piece, row: int, why: str) -> str:
    """What is wrong with a row of a piece, and where it is."""
    return f"{piece.file.path}, row {piece.first + row + 1}: {why}"
