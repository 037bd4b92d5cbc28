"""Rows that name their pictures or sounds by path, in pieces of which each reads few of those files.

    found = parted(cut(files), roles)
    found.pieces, found.stamps        # at most a thousand rows and some 64 MB in each; {0: "9f2c..."}

A table's own file says nothing of those that its rows name: how many bytes there are, and whether one was written anew.
So its paths are read, and each file is asked for once. It knows files and columns; it decodes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from ray_lora.data.formats import DESCRIBED
from ray_lora.data.pictures import BY_PATH, named_by_path, paths_of
from ray_lora.data.piece_rows import read_written
from ray_lora.data.piece_types import look, look_at
from ray_lora.data.pieces import Piece, first_pieces
from ray_lora.data.places import Place
from ray_lora.errors import DataError
from ray_lora.tasks import Column
from ray_lora.tasks.task import FILE_KINDS

_THREADS = 8  # for what waits for a disk or a bucket
_ROWS, _BYTES = 1024, 64 << 20  # of a piece: the files of its rows are in memory together
_ABSENT = (0, "none")  # of a file that is not there: who reads the row names it


@dataclass(frozen=True)
class Parted:
    """A split's pieces.

    Attributes:
        looks: the columns of each text file whose rows name files, by the file's number, as `look` gives them.
        stamps: of all files that a file's rows name: another one whenever one of them was written anew.
        rows, bytes: of the files whose rows name files, and of the files that they name.
    """

    pieces: list[Piece]
    looks: Mapping[int, pa.Schema] = field(default_factory=dict)
    stamps: Mapping[int, str] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0

    def looked(self, others: Callable[[Sequence[Piece]], list[pa.Schema]]) -> list[pa.Schema]:
        """`look` of each file, in the files' order.

        Args:
            others: gives it of the files that are not known here, one piece of each.
        """
        left = [piece for piece in first_pieces(self.pieces) if piece.number not in self.looks]
        rest = iter(others(left) if left else [])
        return [self.looks.get(piece.number) or next(rest) for piece in first_pieces(self.pieces)]


def parted(pieces: Sequence[Piece], roles: Mapping[str, Column]) -> Parted:
    """Pieces whose rows name files, in smaller ones; others as they are.

    Args:
        pieces: of `cut`.
        roles: what the files' columns are to the task.

    Raises:
        DataError: a file is broken.
    """
    if not any(FILE_KINDS.intersection(role.kinds) for role in roles.values()):
        return Parted(list(pieces))
    made: list[Piece] = []
    looks, stamps, rows, size = dict[int, pa.Schema](), dict[int, str](), 0, 0
    for number, mine in itertools.groupby(pieces, lambda piece: piece.number):
        told = hashlib.sha256()
        for piece in mine:
            named = None if piece.file.members or piece.file.how is not None else _named(piece, roles)
            if named is None:
                made.append(piece)
                continue
            schema, paths = named
            sizes = _sizes(piece.file.place, paths, told)
            made += _parts(piece, sizes)
            stamps[number] = told.hexdigest()[:32]
            rows, size = rows + len(sizes), size + sum(sizes)
            if piece.file.format not in DESCRIBED:
                looks[number] = schema
    return Parted(made, looks, stamps, rows, size)


def _named(piece: Piece, roles: Mapping[str, Column]) -> tuple[pa.Schema, list[list[str]]] | None:
    """A piece's columns, and the paths that each of its rows names; None where no row names any."""
    if piece.file.format in DESCRIBED:
        described = look(piece, roles)
        if not named_by_path([described]):
            return None
        columns = [one.name for one in described if one.metadata == BY_PATH]
        table = read_written(piece, roles, columns, files=False)
    else:
        table = read_written(piece, roles, files=False)
        described = look_at(piece, table, roles)
    paths = paths_of(table, roles)
    return (described, paths) if any(paths) else None


def _sizes(place: Place, paths: Sequence[Sequence[str]], told: hashlib._Hash) -> list[int]:
    """Bytes of the files that each row names; all of them, as they were written last, are added to a hash."""
    seen = _all_seen(place.above, sorted({path for row in paths for path in row}))
    for row in paths:
        for path in row:
            told.update(f"{path}\0{seen[path][1]}\0".encode())
    return [sum(seen[path][0] for path in row) for row in paths]


def _all_seen(folder: Place, paths: Sequence[str]) -> dict[str, tuple[int, str]]:
    """(bytes, stamp) of files by their paths."""
    local = folder.local or Path("/")
    here = [path for path in paths if folder.local is not None or Path(path).is_absolute()]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = dict(zip(here, threads.map(lambda path: _seen(local, path), here), strict=True))
    far = [path for path in paths if path not in found]
    for above, mine in itertools.groupby(far, lambda path: path.rpartition("/")[0]):
        try:  # one request for a thousand files
            infos = dict(folder.at(above).list(recursive=False))
        except DataError:
            infos = {}
        for path in mine:
            info = infos.get(path.rpartition("/")[2])
            # a list's time may be finer than a file's own
            found[path] = _ABSENT if info is None else (info.size or 0, f"{info.size}-{(info.mtime_ns or 0) // 10**9}")
    return found


def _seen(folder: Path, path: str) -> tuple[int, str]:
    try:
        told = (folder / path).stat()
    except (OSError, ValueError):
        return _ABSENT
    return told.st_size, f"{told.st_size}-{told.st_mtime_ns}"


def _parts(piece: Piece, sizes: Sequence[int]) -> Iterator[Piece]:
    """A piece in parts of few rows and bytes."""
    begin = size = 0
    for at, one in enumerate(sizes):
        if at > begin and (size + one > _BYTES or at - begin >= _ROWS):
            yield _part(piece, begin, at)
            begin, size = at, 0
        size += one
    yield _part(piece, begin, len(sizes))


def _part(piece: Piece, begin: int, end: int) -> Piece:
    return replace(piece, first=piece.first + begin, skipped=piece.skipped + begin, rows=end - begin)
