"""All rows of a split on one machine, each file's under its own name.

    rows = read_rows("tweets/*.csv", recipe.data, task.columns)
    rows.table.num_rows, rows.tables[0]            # 1024, ("tweets/a.csv", its table)

It knows files and a task's columns; it knows nothing of what rows mean, of encodings, engines or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_lora.data.files import File, find_files
from ray_lora.data.pictures import named_by_path
from ray_lora.data.piece_rows import read_written
from ray_lora.data.piece_types import as_types, first_look, look_at_files, settle
from ray_lora.data.pieces import Piece, first_pieces
from ray_lora.data.places import Place
from ray_lora.data.read import canonical, check_columns, roles
from ray_lora.recipe import DataSpec
from ray_lora.tasks import Column

_MOST_NAMED = 10  # paths in one message


@dataclass(frozen=True)
class Rows:
    """A split's rows, under the task's names.

    Attributes:
        given: what a person gave, for messages.
        tables: (name, rows) of each file, in the files' order; all have the same types.
        files: none where rows do not come from files.
        elsewhere: whether rows name pictures or sounds that lie in other files, so that these files' bytes are not all
            of them.
    """

    given: str
    tables: tuple[tuple[str, pa.Table], ...]
    files: tuple[File, ...] = ()
    elsewhere: bool = False

    @property
    def table(self) -> pa.Table:
        """All rows, in the files' order."""
        return pa.concat_tables([table for _, table in self.tables])


def read_rows(given: str | Sequence[str], data: DataSpec, columns: Mapping[str, Column], split: str = "train") -> Rows:
    """The task's columns of all rows of the files that paths mean; each file is read once.

    Raises:
        DataError: a path means no file, a file is broken, or a column is missing or of another type than in others.
    """
    files, names = find_files(given, split, data.images_of(split)), roles(data, columns)
    pieces = [Piece(file, number) for number, file in enumerate(files)]
    looks = [first_look(piece, names) for piece in pieces]
    pieces = settle_columns(pieces, data, columns, [schema for schema, _ in looks])
    tables = []
    for piece, (_, table) in zip(pieces, looks, strict=True):
        table = read_written(piece, names, names) if table is None else table
        typed = as_types(piece, table, piece.schema)
        tables.append((piece.file.path, canonical(typed, data, columns, piece.file.path)))
    return Rows(say_given(given), tuple(tables), files, named_by_path(schema for schema, _ in looks))


def settle_columns(
    pieces: Sequence[Piece], data: DataSpec, columns: Mapping[str, Column], looks: Sequence[pa.Schema] = ()
) -> list[Piece]:
    """`settle`, of files each of which has the task's columns.

    Raises:
        DataError: as `settle`, or all files lack a column.
    """
    names = roles(data, columns)
    looks = looks or look_at_files(pieces, names)
    settled = settle(pieces, names, looks)
    for piece, schema in zip(first_pieces(pieces), looks, strict=True):
        check_columns(schema.names, data, columns, piece.file.path)
    return settled


def say_given(given: str | Sequence[str]) -> str:
    """Paths as people gave them, not too many, without keys and passwords."""
    paths = [given] if isinstance(given, str) else given
    more = len(paths) - _MOST_NAMED
    return ", ".join(Place.of(path).name for path in paths[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
