"""Files in pieces, each of which is read, checked and encoded by itself.

    pieces = settle(cut(find_files("rows/")), roles)       # piece_types.py; DataError where files differ
    table = read_piece(pieces[0], roles)

It knows files and formats; it knows nothing of columns, of what rows mean, of encodings, engines or Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import pyarrow as pa

from ray_lora.data.annotated.pictures import parts, stretches
from ray_lora.data.files import File, annotated, check_unchanged
from ray_lora.data.formats import reading, row_groups
from ray_lora.data.pictures import digest_of
from ray_lora.errors import DataError

_THREADS = 8  # for what waits for a disk or a bucket
_MEMBERS = 1024  # of a folder in one piece: they are in memory together
_BYTES = 1 << 22  # hashed at once


@dataclass(frozen=True)
class Piece:
    """A stretch of one file's rows.

    Attributes:
        file: where they are.
        number: of the file among the split's files.
        groups: parquet's row groups, or annotated pictures, [begin, end); None: the whole file.
        skipped: rows of these groups before the piece's first one; a group of many rows is read for several pieces.
        first: number, in its file, of the piece's first row.
        rows: how many, where that is known before they are read.
        schema: the types that columns have in all files (`settle`); None: as this file has them.
    """

    file: File
    number: int
    groups: tuple[int, int] | None = None
    first: int = 0
    rows: int | None = None
    skipped: int = 0
    schema: pa.Schema | None = None


def cut(files: Sequence[File], most_rows: int = 32_768) -> list[Piece]:
    """Files in pieces, in their order: parquet by row groups of about `most_rows` rows together, and larger groups in
    parts; annotated pictures by their bytes too; a folder's pictures or sounds in fewer; others whole.

    Raises:
        DataError: a parquet file is broken or has no rows.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        parts = threads.map(_cut, range(len(files)), files, repeat(most_rows))
        return [piece for part in parts for piece in part]


def _cut(number: int, file: File, most_rows: int) -> list[Piece]:
    if file.members:
        count, most = len(file.members), min(most_rows, _MEMBERS)
        return [Piece(file, number, None, begin, min(most, count - begin), begin) for begin in range(0, count, most)]
    if file.how is not None:
        return [Piece(file, number, (at, end), at, end - at) for at, end in stretches(annotated(file), most_rows)]
    if file.format != "parquet":
        return [Piece(file, number)]
    sizes = row_groups(file)
    pieces: list[Piece] = []
    begin = first = rows = 0
    for at, size in enumerate(sizes):
        if rows and rows + size > most_rows:
            pieces.append(Piece(file, number, (begin, at), first, rows))
            begin, first, rows = at, first + rows, 0
        rows += size
        if rows > 2 * most_rows:  # a group alone
            share = -(-rows // -(-rows // most_rows))  # about equal parts
            for skipped in range(0, rows, share):
                part = min(share, rows - skipped)
                pieces.append(Piece(file, number, (at, at + 1), first + skipped, part, skipped))
            begin, first, rows = at + 1, first + rows, 0
    if rows:
        pieces.append(Piece(file, number, (begin, len(sizes)), first, rows))
    if not pieces:
        raise no_rows(file)
    return pieces


def first_pieces(pieces: Sequence[Piece]) -> list[Piece]:
    """The first piece of each file."""
    return list({piece.number: piece for piece in reversed(pieces)}.values())[::-1]


def digest(files: Sequence[File]) -> str:
    """sha256 of a file's bytes, of annotations and all their pictures; of several files, of their digests in order, as
    hexadecimal digits.

    Raises:
        DataError: a file cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = list(threads.map(_digest, files))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(file: File) -> str:
    check_unchanged(file)
    if file.members:
        return digest_of(file.place, (*file.members, *file.transcripts))
    found = hashlib.sha256()
    if file.how is not None:
        for part in parts(annotated(file)):
            found.update(part)
        return found.hexdigest()
    with reading(file), file.place.open() as opened:
        while block := opened.read(_BYTES):
            found.update(block)
    return found.hexdigest()


def no_rows(file: File) -> DataError:
    return DataError(f"data file {file.path!r} has no rows; it needs at least one")
