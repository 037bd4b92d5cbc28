"""Rows that are too many for one process: looked at, checked and encoded in pieces, found again by the next run.

    if is_large(files):
        found = prepare_large(recipe, files, processor, tell)     # {"train": Encoded(...), ...}, the completed task

It knows files, pieces and what is remembered of them; what is done with a piece is in `encoding.py`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_lora.atomic import write_atomic
from ray_lora.data.check import raise_wrong
from ray_lora.data.encoded import EncodedFile
from ray_lora.data.encoder import Encoder, code_of
from ray_lora.data.files import File, annotated
from ray_lora.data.named_files import Parted, parted
from ray_lora.data.pieces import Piece, cut, first_pieces
from ray_lora.data.read import roles
from ray_lora.data.remembered import Remembered, recall, remember
from ray_lora.data.row_cache import RowCache
from ray_lora.data.rows import say_given, settle_columns
from ray_lora.data.stored_rows import Stretch
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec, Recipe, TaskSpec
from ray_lora.running.encoding import Glance, Shard, encode, fetched, kept, look_at, survey
from ray_lora.running.reading import Tell
from ray_lora.tasks import Column, task_of
from ray_lora.tasks.task import FILE_KINDS

# Where the direct way ends: it reads on the driver, and every pack encodes for itself. Below, what Ray Data takes to
# start costs more than it saves (benchmarks/results/rows.json).
LARGE_ROWS, LARGE_BYTES = 50_000, 64 << 20
_ROW_BYTES = 100  # of a row of text, where a file does not say how many rows it has


@dataclass(frozen=True)
class Encoded:
    """One split's encoded rows.

    Attributes:
        shards: in the rows' order; firsts: the number, in the split, of each one's first row.
        encoder: a reference to what `ray.put` was given.
        key: of the encoder; data: which column is which.
        begun: when this run began to use what is kept, which nobody removes to make room for more of it.
    """

    shards: tuple[Shard, ...]
    encoder: Any  # ray.ObjectRef[Encoder]
    key: str
    data: DataSpec
    sha256: str
    begun: float

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def firsts(self) -> list[int]:
        return [0, *accumulate(shard.rows for shard in self.shards)][:-1]


def is_large(files: Mapping[str, Sequence[File]], wanted: Mapping[str, Column] = MappingProxyType({})) -> bool:
    """Whether rows are better read and encoded in pieces.

    Args:
        wanted: the files' columns and what they are to the task, whose rows may name files by path.
    """
    every = [file for split in files.values() for file in split]
    if sum(file.size for file in every) >= LARGE_BYTES:
        return True
    if any(FILE_KINDS.intersection(column.kinds) for column in wanted.values()):
        named = parted(cut(every), wanted)
        if named.rows >= LARGE_ROWS or named.bytes >= LARGE_BYTES:
            return True
    written = sum(
        len(file.members) or file.size // _ROW_BYTES for file in every if file.format != "parquet" and file.how is None
    )
    written += sum(len(annotated(file).pictures) for file in every if file.how is not None)
    if written + sum(file.size for file in every if file.format == "parquet") < LARGE_ROWS:
        return False  # no row takes less than a byte
    told = cut([file for file in every if file.format == "parquet"])
    return written + sum(piece.rows or 0 for piece in told) >= LARGE_ROWS


def prepare_large(
    recipe: Recipe, files: Mapping[str, Sequence[File]], processor: Any, tell: Tell
) -> tuple[TaskSpec, dict[str, Encoded]]:
    """The recipe's task, completed by the training rows, and the encoded rows of each split.

    Raises:
        DataError: a file, a column or a row is wrong; the first ten wrong rows are named.
    """
    data, begun = recipe.data, time.time()
    named = _named(recipe, files)
    key = _key(recipe, files, named)
    known = recall(key, files) or _look(recipe, files, named, tell)
    encoder = Encoder.of(known.task, processor, data.columns)
    pieces = {split: known.pieces[split] for split in files}
    shards = _encoded(pieces, known, encoder, data, tell, begun)
    remember(key, replace(known, rows={split: [shard.rows for shard in found] for split, found in shards.items()}))
    told = ray.put(encoder)
    return known.task, {
        split: Encoded(tuple(found), told, encoder.key, data, known.sha256(split), begun)
        for split, found in shards.items()
    }


def _named(recipe: Recipe, files: Mapping[str, Sequence[File]]) -> dict[str, Parted]:
    """The pieces of each split whose rows may name files by path; none where no column of the task could."""
    wanted = roles(recipe.data, task_of(recipe.task).columns)
    if not any(FILE_KINDS.intersection(column.kinds) for column in wanted.values()):
        return {}
    return {split: parted(cut(mine), wanted) for split, mine in files.items()}


def _look(recipe: Recipe, files: Mapping[str, Sequence[File]], named: Mapping[str, Parted], tell: Tell) -> Remembered:
    """What the files hold, and what the training rows teach."""
    task, pieces = task_of(recipe.task), dict[str, list[Piece]]()
    for split, mine in files.items():
        found = named.get(split) or Parted(cut(mine))
        looks = found.looked(lambda others: look_at(others, recipe.data, task, tell))
        pieces[split] = settle_columns(found.pieces, recipe.data, task.columns, looks)
    _check_alike(pieces)
    firsts = {split: set(map(id, first_pieces(mine))) for split, mine in pieces.items()}
    glances = [
        (split, Glance(piece, split == "train", id(piece) in firsts[split]))
        for split, mine in pieces.items()
        for piece in mine
        if split == "train" or id(piece) in firsts[split]
    ]
    seen = survey([glance for _, glance in glances], recipe.data, recipe.task, tell)
    digests: dict[str, list[str]] = {split: [] for split in pieces}
    for (split, _), one in zip(glances, seen, strict=True):
        digests[split] += [one.digest] if one.digest else []
    for split, found in named.items():  # what is kept of rows is theirs as long as no file that they name changes
        for number, stamp in found.stamps.items():
            digests[split][number] = hashlib.sha256(f"{digests[split][number]}{stamp}".encode()).hexdigest()
    taught = [one.taught for (_, glance), one in zip(glances, seen, strict=True) if glance.teaches]
    try:
        spec = task.merge(recipe.task, taught)
    except DataError as error:
        raise DataError(f"{say_given(recipe.data.train or '')}: {error}") from None
    return Remembered(spec, pieces, digests, {})


def _check_alike(pieces: Mapping[str, Sequence[Piece]]) -> None:
    """DataError where one split has a column that another one lacks."""
    first = pieces["train"][0]
    train = _columns(first)
    for split in pieces.values():
        for name in sorted(train ^ _columns(split[0])):
            has, lacks = (first, split[0]) if name in train else (split[0], first)
            raise DataError(
                f"{lacks.file.path} has no column {name!r}, which {has.file.path} has; rows that train and rows that "
                "score are alike"
            )


def _columns(piece: Piece) -> set[str]:
    return set() if piece.schema is None else set(piece.schema.names)


def _encoded(
    pieces: Mapping[str, Sequence[Piece]],
    known: Remembered,
    encoder: Encoder,
    data: DataSpec,
    tell: Tell,
    begun: float,
) -> dict[str, list[Shard]]:
    """The shards of all pieces: those that some node has, and those that are made now."""
    names = {split: [_name(piece, known.digests[split][piece.number]) for piece in pieces[split]] for split in pieces}
    held = _holders(encoder.key, [name for mine in names.values() for name in mine])
    found: dict[str, Shard] = {}
    missing: dict[str, Piece] = {}
    for split, mine in pieces.items():
        rows = known.rows.get(split)
        for at, (piece, name) in enumerate(zip(mine, names[split], strict=True)):
            if rows is not None and name in held:
                found[name] = Shard(piece, name, rows[at], held[name])
            else:
                missing[name] = piece
    if missing:
        made, wrong = encode(list(missing.values()), list(missing), encoder, data, tell, begun)
        raise_wrong(((one.piece.file.path, one.rows) for one in wrong), sum(one.more for one in wrong))
        found |= {shard.name: shard for shard in made}
    return {split: [found[name] for name in mine] for split, mine in names.items()}


def _name(piece: Piece, digest: str) -> str:
    """A piece's name in the cache: of the file's bytes, of the part of them, and of what its columns are read as."""
    told = [digest, piece.groups, piece.skipped, piece.rows, piece.file.partitions, str(piece.schema)]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def _key(recipe: Recipe, files: Mapping[str, Sequence[File]], named: Mapping[str, Parted]) -> str:
    """What is remembered stands for this task, these columns and these files, as they were written last, those that
    rows name by path too."""
    stamps: dict[str, Any] = {
        split: [(file.place.address, file.stamp) for file in mine] for split, mine in files.items()
    }
    stamps |= {f"named in {split}": sorted(found.stamps.items()) for split, found in named.items() if found.stamps}
    told = [recipe.task.model_dump_json(), sorted(recipe.data.columns.items()), stamps, code_of(task_of(recipe.task))]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def _holders(encoder: str, names: Sequence[str]) -> dict[str, str]:
    """name -> a node whose cache has that piece, whole; this one where it has it."""
    here, found = _here(), dict[str, str]()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    asked = {
        node: ray.remote(num_cpus=0)(_held).options(scheduling_strategy=_on(node)).remote(encoder, names)
        for node in others
    }
    for node, reference in asked.items():
        try:
            theirs: list[str] = ray.get(reference)
            found |= dict.fromkeys(theirs, node)
        except RayError:  # it has just died
            continue
    return found | dict.fromkeys(_held(encoder, names), here)


def _here() -> str:
    """The id of this node."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def _held(encoder: str, names: Sequence[str]) -> list[str]:
    cache = RowCache()
    return [name for name in names if cache.has(encoder, name)]


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


# -------------------------------------------------------------------- in a worker


def stretches(split: Encoded, workers: int) -> list[Stretch]:
    """The rows of a split for so many workers to share: a shard each, or a part of one where there are few."""
    found, parts = [], max(1, -(-4 * workers // len(split.shards))) if workers > 1 else 1
    for shard, first in zip(split.shards, split.firsts, strict=True):
        opens = lru_cache(1)(partial(opened, shard, split))
        size = -(-shard.rows // parts)
        for skipped in range(0, shard.rows, size):
            found.append(Stretch(first + skipped, min(size, shard.rows - skipped), opens, skipped))
    return found


def opened(shard: Shard, split: Encoded) -> EncodedFile:
    """A shard's rows in this node's cache, brought there from the node that has them, or made again."""
    cache = RowCache()
    try:
        return cache.open(split.key, shard.name)
    except OSError:
        pass
    if shard.node != _here():
        try:
            read = ray.remote(num_cpus=0)(_bytes).options(scheduling_strategy=_on(shard.node))
            content = ray.get(read.remote(split.key, shard.name))
            with cache.making(split.key, shard.name) as path:
                if path is not None:
                    write_atomic(path, content)
            return cache.open(split.key, shard.name)
        except (RayError, OSError):  # that node, or what it had, is gone
            pass
    return kept(shard.piece, shard.name, fetched(split.encoder), split.data, split.begun)


def _bytes(encoder: str, name: str) -> bytes:
    return RowCache().path(encoder, name).read_bytes()
