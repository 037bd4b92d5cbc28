"""Large files read once from end to end on one machine, a piece at a time: what they teach, and whether they are right.

    spec, rows = look_through(recipe, files)       # for a plan, which starts nothing

It knows pieces and asks the task; it keeps no rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ray_lora.data.check import MOST_NAMED, learn, on_base, raise_wrong, wrong_rows
from ray_lora.data.files import File
from ray_lora.data.named_files import parted
from ray_lora.data.piece_types import look_at_files, read_piece
from ray_lora.data.pieces import Piece, cut
from ray_lora.data.read import canonical, roles
from ray_lora.data.rows import say_given, settle_columns
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec, Recipe, TaskSpec
from ray_lora.tasks import Task, task_of


def look_through(
    recipe: Recipe, files: Mapping[str, Sequence[File]], processor: Any = None
) -> tuple[TaskSpec, dict[str, int]]:
    """The task's options, completed by the training rows, and the number of rows of each split.

    Args:
        processor: the base's, where it is known.

    Raises:
        DataError: a file, a column or a row is wrong; the first ten wrong rows are named.
    """
    task, data = task_of(recipe.task), recipe.data
    names, pieces = roles(data, task.columns), dict[str, list[Piece]]()
    for split, given in files.items():
        found = parted(cut(given), names)
        looks = found.looked(lambda others: look_at_files(others, names))
        pieces[split] = settle_columns(found.pieces, data, task.columns, looks)
    try:
        spec = learn(task, recipe.task, (table_of(piece, data, task) for piece in pieces["train"]))
    except DataError as error:
        raise DataError(f"{say_given(data.train or '')}: {error}") from None
    asked, rows = on_base(spec, processor), dict.fromkeys(pieces, 0)
    faults, more = list[tuple[str, list[tuple[int, str]]]](), 0
    for split, mine in pieces.items():
        for piece in mine:
            table = table_of(piece, data, task)
            wrong = wrong_rows(asked, spec, table, piece.first)
            faults += [(piece.file.path, wrong[:MOST_NAMED])] if wrong else []
            more += max(0, len(wrong) - MOST_NAMED)
            rows[split] += table.num_rows
    raise_wrong(faults, more)
    return spec, rows


def table_of(piece: Piece, data: DataSpec, task: type[Task] | Task) -> pa.Table:
    """A piece's rows under the task's names."""
    wanted = roles(data, task.columns)
    return canonical(read_piece(piece, wanted, wanted), data, task.columns, piece.file.path)
