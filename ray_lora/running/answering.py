"""What an actor of a run does: read a piece of the rows, answer it, write it as one file.

It knows one piece at a time; `answers.py` knows the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_lora.uncollected import uncollected

with uncollected():  # an actor is a process that begins with these
    import pyarrow as pa
    import ray
    import torch

    from ray_lora.data.piece_types import read_piece
    from ray_lora.errors import RayLoraError
    from ray_lora.inference.answer_columns import AnswerColumns
    from ray_lora.inference.table_rows import refs_of
    from ray_lora.inference.tables import Answer, TableAnswers
    from ray_lora.running.parts import Parts, check_format
    from ray_lora.running.predictor import device_here
    from ray_lora.running.tally import MOST_NAMED, Done, Work, say
    from ray_lora.store import open_store


class TooManyErrorsError(RayLoraError, RuntimeError):
    """More rows have errors than the run may have."""


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
            done.wrong += [say(piece, row, why) for row, why in wrong[: MOST_NAMED - len(done.wrong)]]
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
