"""Large data: what rows teach, whether they are right, and their encoded rows, by Ray Data wherever the files are.

    taught = survey(pieces, recipe.task, roles, tell)        # of each piece, its rows and what they teach
    shards = encode(pieces, encoder, roles, tell)            # each in the row cache of the node that made it

No row comes to the driver. What a node's cache holds already is taken as it is, and what is lost is made again by
whoever needs it. It knows pieces and tasks, no splits, engines or adapters.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import pyarrow as pa
import ray

from ray_lora.allowed import environment
from ray_lora.data.check import MOST_NAMED, wrong_rows
from ray_lora.data.encoded import EncodedFile, write_rows
from ray_lora.data.encoder import Encoder
from ray_lora.data.formats import DESCRIBED
from ray_lora.data.piece_types import look, look_at_files
from ray_lora.data.pieces import Piece, digest, first_pieces
from ray_lora.data.read import roles
from ray_lora.data.row_cache import BOUND, RowCache, bound
from ray_lora.data.through import table_of
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec, TaskSpec
from ray_lora.running.local_ray import quiet_data
from ray_lora.running.reading import Tell
from ray_lora.tasks import Features, Task, task_of

_AT_ONCE = 1024  # rows encoded in one call
_Of = TypeVar("_Of")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Glance:
    """What is to be found out about one piece.

    Attributes:
        teaches: it holds training rows.
        first: it is the first of its file, whose digest is taken with it.
    """

    piece: Piece
    teaches: bool
    first: bool


@dataclass(frozen=True)
class Seen:
    """What was found out: `taught` is of `task.learn`."""

    rows: int = 0
    taught: Any = None
    digest: str = ""


@dataclass(frozen=True)
class Shard:
    """Encoded rows of one piece, in the cache of the node that made them."""

    piece: Piece
    name: str
    rows: int
    node: str


@dataclass(frozen=True)
class Wrong:
    """The first wrong rows of a piece, by their numbers in its file, and how many more there are."""

    piece: Piece
    rows: tuple[tuple[int, str], ...]
    more: int


def look_at(pieces: Sequence[Piece], data: DataSpec, task: type[Task], tell: Tell) -> list[pa.Schema]:
    """The task's columns and their types in each file; files that do not describe themselves are read for that."""
    wanted = roles(data, task.columns)
    if all(piece.file.format in DESCRIBED for piece in pieces):
        return look_at_files(pieces, wanted)
    return _everywhere(first_pieces(pieces), lambda piece: look(piece, wanted), tell, "looking at files")


def survey(glances: Sequence[Glance], data: DataSpec, spec: TaskSpec, tell: Tell) -> list[Seen]:
    """What each piece's rows teach, and each file's digest, where the pieces lie.

    Raises:
        DataError: a file is broken, or lacks a column.
    """
    task = task_of(spec)
    sizes = [glance.piece.rows for glance in glances if glance.teaches]

    def seen(glance: Glance) -> Seen:
        found = digest([glance.piece.file]) if glance.first else ""
        if not glance.teaches:
            return Seen(digest=found)
        table = table_of(glance.piece, data, task)
        return Seen(table.num_rows, task.learn(spec, table), found)

    return _everywhere(glances, seen, tell, "reading", lambda found: found.rows, sizes)


def encode(
    pieces: Sequence[Piece], names: Sequence[str], encoder: Encoder, data: DataSpec, tell: Tell, begun: float
) -> tuple[list[Shard], list[Wrong]]:
    """Check and encode pieces, each into the cache of the node where that is done.

    Args:
        names: of each piece, in the cache. begun: as `kept` has it.

    Returns:
        the shards of pieces that are right, in the pieces' order, and what is wrong in the others.
    """
    told = ray.put(encoder)
    named = dict(zip(pieces, names, strict=True))

    def made(piece: Piece) -> Shard | Wrong:
        node = ray.get_runtime_context().get_node_id()
        try:
            return Shard(piece, named[piece], len(kept(piece, named[piece], fetched(told), data, begun)), node)
        except WrongRowsError as error:
            return error.wrong

    sizes = [piece.rows for piece in pieces]
    found = _everywhere(pieces, made, tell, "encoding", lambda one: one.rows if isinstance(one, Shard) else 0, sizes)
    return [one for one in found if isinstance(one, Shard)], [one for one in found if isinstance(one, Wrong)]


class WrongRowsError(DataError):
    """A piece has rows that are wrong."""

    wrong: Wrong


def kept(piece: Piece, name: str, encoder: Encoder, data: DataSpec, begun: float) -> EncodedFile:
    """A piece's encoded rows in this node's cache, made where they are not there.

    Args:
        begun: what was used since then is not removed to make room; seconds since the epoch.

    Raises:
        WrongRowsError: rows are wrong; nothing is kept.
        DataError: the file is gone, the cache cannot be written, or holds no more.
    """
    cache = RowCache(begun=begun)
    try:
        return cache.open(encoder.key, name)
    except OSError:
        pass  # not there, or torn
    with cache.making(encoder.key, name, encoder.about) as path:
        if path is not None:
            table = table_of(piece, data, encoder.task)
            wrong = wrong_rows(encoder.task, encoder.task.spec, table, piece.first)
            if wrong:
                error = WrongRowsError(f"{piece.file.path} has wrong rows")
                error.wrong = Wrong(piece, tuple(wrong[:MOST_NAMED]), max(0, len(wrong) - MOST_NAMED))
                raise error
            write_rows(path, _encoded(table, encoder.task))
            if cache.over() > 0:
                cache.trim()
            if cache.over() > 0:
                raise DataError(
                    f"the encoded rows of this run alone take more than {bound() / 1e9:g} GB; "
                    f"set {BOUND} to more, or train on fewer rows"
                )
    return cache.open(encoder.key, name)


def _encoded(table: pa.Table, task: Task) -> Iterator[tuple[Features, int]]:
    for begin in range(0, table.num_rows, _AT_ONCE):
        for features in task.encode(table.slice(begin, _AT_ONCE).to_pylist()):
            yield features, task.size(features)


@lru_cache(maxsize=4)
def fetched(told: Any) -> Encoder:
    """What `ray.put` was given; once a process."""
    encoder: Encoder = ray.get(told)
    return encoder


# -------------------------------------------------------------------- Ray Data


def _everywhere(
    items: Sequence[_Of],
    each: Callable[[_Of], _Found],
    tell: Tell,
    what: str,
    rows_of: Callable[[_Found], int] = lambda _: 0,
    sizes: Sequence[int | None] = (None,),
) -> list[_Found]:
    """What a function gives for each item, in their order, as tasks of Ray Data.

    Args:
        rows_of: how many rows were done with what it gave; sizes: how many there are to be done, where that is known.

    Raises:
        DataError: that of one of them, as it was raised there.
    """
    import ray.data

    told, variables = ray.put(list(items)), task_environment()

    def answer(row: dict[str, int]) -> dict[str, Any]:
        os.environ.update(variables)  # a runtime_env would start other processes for it
        try:
            found: Any = each(_list(told)[row["number"]])
        except DataError as error:
            found = error
        return {"number": row["number"], "found": pickle.dumps(found)}

    found: dict[int, _Found] = {}
    done = 0
    of_rows = sum(size or 0 for size in sizes) if None not in sizes else None
    tell(what, 0, len(items), 0, of_rows)
    with quiet_data():
        numbers = ray.data.from_items(
            [{"number": number} for number in range(len(items))], override_num_blocks=max(1, len(items))
        )
        for row in numbers.map(answer, num_cpus=1).iter_rows():
            value = pickle.loads(row["found"])  # noqa: S301  (what a task of ours has just pickled)
            if isinstance(value, DataError):
                raise value
            number = int(row["number"])
            found[number] = value
            done += rows_of(value)
            tell(what, len(found), len(items), done, of_rows)
    return [found[number] for number in range(len(items))]


@lru_cache(maxsize=4)
def _list(told: Any) -> list[Any]:
    """The items that `ray.put` was given; once a process."""
    items: list[Any] = ray.get(told)
    return items


def task_environment() -> dict[str, str]:
    """Whose code tasks may import, and one thread for each of them."""
    return {**environment(), "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
