"""What an actor of a run does: read a piece of the rows, answer it, write it as one file. And where actors say how far
they are.

It knows one piece at a time; `answers.py` knows the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
import torch

from ray_lora.data.pieces import Piece, read_piece
from ray_lora.errors import RayLoraError
from ray_lora.inference.answer_columns import AnswerColumns
from ray_lora.inference.pinned import Pinned
from ray_lora.inference.table_rows import refs_of
from ray_lora.inference.tables import Answer, TableAnswers
from ray_lora.recipe import Json
from ray_lora.running.parts import Format, Parts, check_format
from ray_lora.running.predictor import device_here
from ray_lora.store import open_store
from ray_lora.tasks import Column

MOST_NAMED = 10  # wrong rows in one message


class TooManyErrorsError(RayLoraError, RuntimeError):
    """More rows have errors than the run may have."""


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


class Answering:
    """The callable of `map_batches`: numbers of pieces in, a row of counts for each out."""

    def __init__(self, work: Work) -> None:
        self.work = work
        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
        self._parts = Parts(work.output, work.format)
        self._new = AnswerColumns(work.pinned.pipelines, work.parameters, work.prefix)
        self._answers = TableAnswers(
            open_store(work.store, work.tracking_uri),
            work.pinned,
            base=work.base,
            columns=work.columns,
            parameters=work.parameters,
            slots=work.slots,
            device=device_here(),
            dtype=work.dtype,
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        numbers = batch.column("piece").to_pylist()
        return pa.table({"piece": numbers, "rows": [self.answer(number) for number in numbers]})

    def answer(self, number: int) -> int:
        """Answer a piece and write its file; how many rows it has.

        Raises:
            DataError: the file is broken, or a value cannot be written.
            TooManyErrorsError: the run has too many by now.
        """
        work, piece = self.work, self.work.pieces[number]
        where = piece.file.path
        table = read_piece(piece, work.roles)
        self._new.check(table.column_names, where)
        check_format(table.schema, work.format, where)
        if work.adapter is not None:
            refs: list[str | None] = [work.adapter] * table.num_rows
        else:
            assert work.adapter_column is not None
            refs = refs_of(table, work.adapter_column)
        done = Done()

        def told(rows: Sequence[int], found: Sequence[Answer]) -> None:
            wrong = [(row, answer.error) for row, answer in zip(rows, found, strict=True) if answer.error is not None]
            done.rows, done.errors = done.rows + len(rows), done.errors + len(wrong)
            done.cut += sum(answer.cut is not None for answer in found)
            done.adapters.update(answer.entry.ref for answer in found if answer.entry and answer.error is None)
            done.wrong += [_say(piece, row, why) for row, why in wrong[: MOST_NAMED - len(done.wrong)]]
            self._tell(number, done)

        answers = self._answers.answer(table, refs, told)
        for name, column in self._new.of(refs, answers).items():
            table = table.append_column(name, column)
        self._parts.write(number, table)
        done.whole = True
        self._tell(number, done)
        return done.rows

    def _tell(self, number: int, done: Done) -> None:
        if not ray.get(self.work.tally.told.remote(number, done)):
            raise TooManyErrorsError("too many rows have errors")


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
            done.wrong += [_say(piece, row, error)] if len(done.wrong) < MOST_NAMED else []
    return done


def _say(piece: Piece, row: int, why: str) -> str:
    return f"{piece.file.path}, row {piece.first + row + 1}: {why}"
