"""Encoded rows of many files as one mapping from row numbers, held on disk and read when they are asked for.

    rows = StoredRows([Stretch(0, 32768, open_first), Stretch(65536, 32768, open_third)])
    rows[65540], 40000 in rows, rows.sizes()          # this worker has no row 40000
    rows.prefetch([7, 12, 65541])                     # in the background, for the next step

It knows row numbers and files, no tasks.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ray_lora.data.encoded import EncodedFile
from ray_lora.tasks import Features


@dataclass(frozen=True)
class Stretch:
    """Rows of one file: the number of the first of them, how many there are, what opens the file, and how many of its
    rows come before."""

    first: int
    rows: int
    open: Callable[[], EncodedFile]
    skipped: int = 0


class StoredRows(Mapping[int, Features]):
    """Rows of files, by their numbers. A file is opened when one of its rows is asked for."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._stretches = sorted(stretches, key=lambda stretch: stretch.first)
        self._firsts = [stretch.first for stretch in self._stretches]
        self._files: dict[int, EncodedFile] = {}
        self._ahead: Future[dict[int, Features]] | None = None
        self._thread = ThreadPoolExecutor(1, "rows")

    def __getitem__(self, row: int) -> Features:
        if self._ahead is not None:
            ready = self._ahead.result().get(row)
            if ready is not None:
                return ready
        return self._read(row)

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and self._at(row) is not None

    def __len__(self) -> int:
        return sum(stretch.rows for stretch in self._stretches)

    def __iter__(self) -> Iterator[int]:
        for stretch in self._stretches:
            yield from range(stretch.first, stretch.first + stretch.rows)

    def prefetch(self, rows: Sequence[int]) -> None:
        """Begin to read those of these rows that are here; what was read ahead before is forgotten."""
        mine = [row for row in rows if row in self]
        self._ahead = self._thread.submit(lambda: {row: self._read(row) for row in mine})

    def sizes(self) -> list[int]:
        """What `task.size` gives for each row, in the order of their numbers."""
        parts = [
            self._file(at).sizes[stretch.skipped : stretch.skipped + stretch.rows]
            for at, stretch in enumerate(self._stretches)
        ]
        found: list[int] = np.concatenate([np.zeros(0, np.int32), *parts]).tolist()
        return found

    def cut(self) -> Counter[str]:
        """How many rows are cut, by why; those of a file are told by whoever holds its first row."""
        firsts = (at for at, stretch in enumerate(self._stretches) if not stretch.skipped)
        return sum((self._file(at).cut for at in firsts), Counter[str]())

    def _read(self, row: int) -> Features:
        at = self._at(row)
        if at is None:
            raise KeyError(row)
        return self._file(at)[row - self._firsts[at] + self._stretches[at].skipped]

    def _at(self, row: int) -> int | None:
        """The number of the stretch that holds a row."""
        at = bisect.bisect_right(self._firsts, row) - 1
        return at if at >= 0 and row < self._firsts[at] + self._stretches[at].rows else None

    def _file(self, at: int) -> EncodedFile:
        if at not in self._files:
            self._files[at] = self._stretches[at].open()
        return self._files[at]
