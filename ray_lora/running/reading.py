"""How far looking at files, reading and encoding have come, from the first second on.

with reading("tweets", quiet=False) as tell:
    tell("encoding", 12, 31, 393_216, 1_000_000)     # pieces, of how many, rows, of how many
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ray_lora.running.rows_progress import RowsProgress

Tell = Callable[[str, int, int, int, int | None], None]


@contextlib.contextmanager
def reading(title: str, quiet: bool) -> Iterator[Tell]:
    """What is told how far it is; a line for each of the things that are done.

    Args:
        title: whose rows they are.
    """
    lines: dict[str, RowsProgress] = {}

    def tell(what: str, pieces: int, of: int, rows: int, of_rows: int | None) -> None:
        if what not in lines:
            for line in lines.values():
                line.close()
            lines[what] = RowsProgress(f"{title}: {what}", rows=of_rows, quiet=quiet)
        lines[what].show(rows, more=f", {pieces:,} of {of:,} pieces", last=pieces == of)

    yield tell
    for line in list(lines.values())[-1:]:
        line.close()
