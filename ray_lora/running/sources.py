"""A recipe's rows for its workers: few as checked blocks in Ray's object store, many as encoded files.

Every row is checked before any worker starts. A worker takes its share of the blocks and encodes each row once for all
adapters, or opens its share of the encoded files. This module knows rows and tasks; it knows nothing of engines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_lora.data.check import check_tables as check_files
from ray_lora.data.check import learn, on_base
from ray_lora.data.files import File, find_files
from ray_lora.data.pieces import digest
from ray_lora.data.read import canonical, roles
from ray_lora.data.rows import Rows, read_rows, say_given
from ray_lora.data.stored_rows import StoredRows
from ray_lora.data.through import look_through
from ray_lora.errors import DataError
from ray_lora.inference.teacher import SoftTargets
from ray_lora.recipe import Recipe, TaskSpec
from ray_lora.running.datasets import size_of, write
from ray_lora.running.large import LARGE_BYTES, LARGE_ROWS, Encoded, is_large, prepare_large, stretches
from ray_lora.running.reading import reading
from ray_lora.tasks import Column, Features, Task, task_of
from ray_lora.tasks.soft_targets import Distilled
from ray_lora.training.job import Job
from ray_lora.training.pack import Split, Splits

if TYPE_CHECKING:
    import ray.data

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Block:
    """A piece of one split in Ray's object store."""

    ref: Any  # ray.ObjectRef[pa.Table]
    offset: int  # number of its first row in the split
    rows: int


@dataclass(frozen=True)
class Source:
    """One recipe's checked data."""

    task: TaskSpec  # completed by what the training rows teach
    splits: dict[str, tuple[Block, ...] | Encoded]
    identity: dict[str, str]  # path, files, rows and sha256 of each split; ref and hash of the teacher
    groups: tuple[str, ...] = ()  # of each validation row, where a search asks
    soft: Any = None  # ray.ObjectRef[SoftTargets] of the training rows, where there is a teacher

    def rows(self, split: str) -> int:
        """How many rows a split has."""
        found = self.splits.get(split, ())
        return found.rows if isinstance(found, Encoded) else sum(block.rows for block in found)


def prepare(
    recipe: Recipe,
    datasets: Mapping[str, ray.data.Dataset] | None = None,
    pieces: int = 4,
    processor: Any = None,
    quiet: bool = True,
) -> Source:
    """Read and check a recipe's rows. Few are put into the object store; many are encoded in pieces (`large.py`).

    Args:
        datasets: `{"train": ..., "validation": ...}` in place of the recipe's files.
        pieces: blocks to cut each split of few rows into, at least one a worker.
        processor: the base's; without one all rows are taken for few.

    Raises:
        DataError: a file, a column or a row is wrong; the message says which.
    """
    if datasets is not None:
        computed, rows, size = size_of(datasets)
        many = processor is not None and "train" in computed and (rows >= LARGE_ROWS or size >= LARGE_BYTES)
        return (
            _many(recipe, write(recipe, computed), processor, quiet)
            if many
            else _few(recipe, computed, pieces, processor)
        )
    files = files_of(recipe)
    if processor is not None and "train" in files and is_large(files, _wanted(recipe)):
        return _many(recipe, files, processor, quiet)
    return _few(recipe, None, pieces, processor)


def files_of(recipe: Recipe) -> dict[str, tuple[File, ...]]:
    """The files of each split that the recipe gives."""
    given = {split: getattr(recipe.data, split) for split in SPLITS}
    found = {split: paths for split, paths in given.items() if paths is not None}
    return {split: find_files(paths, split, recipe.data.images_of(split)) for split, paths in found.items()}


def _wanted(recipe: Recipe) -> dict[str, Column]:
    """The files' columns, and what they are to the task."""
    return roles(recipe.data, task_of(recipe.task).columns)


def _many(recipe: Recipe, files: Mapping[str, Sequence[File]], processor: Any, quiet: bool) -> Source:
    with reading(recipe.name, quiet) as tell:
        task, found = prepare_large(recipe, files, processor, tell)
    identity = {
        f"{split}.{key}": str(value)
        for split, rows in found.items()
        for key, value in {
            "path": say_given(getattr(recipe.data, split) or f"the {split} dataset"),
            "files": len(files[split]),
            "rows": rows.rows,
            "sha256": rows.sha256,
        }.items()
    }
    return Source(task, dict(found), identity)


def _few(recipe: Recipe, datasets: Mapping[str, ray.data.Dataset] | None, pieces: int, processor: Any) -> Source:
    import ray

    tables = read_tables(recipe, datasets)
    task = check_tables(recipe, tables, processor)
    identity: dict[str, str] = {}
    for split, rows in tables.items():
        content = digest(rows.files) if rows.files and not rows.elsewhere else table_hash(rows.table)
        found = {"path": rows.given, "files": len(rows.files), "rows": rows.table.num_rows, "sha256": content}
        identity |= {f"{split}.{key}": str(value) for key, value in found.items()}
    return Source(
        task, {split: tuple(_blocks(rows.table, pieces, ray.put)) for split, rows in tables.items()}, identity
    )


def inspect(recipe: Recipe, processor: Any = None) -> tuple[TaskSpec, dict[str, int]]:
    """A recipe's task, completed by its training rows, and the number of rows of each split; nothing is started.

    Args:
        processor: the base's; without one nothing is said of rows that only this base cannot read.
    """
    files = files_of(recipe)
    if "train" in files and is_large(files, _wanted(recipe)):
        return look_through(recipe, files, processor)
    tables = read_tables(recipe, None)
    task = check_tables(recipe, tables, processor)
    return task, {split: rows.table.num_rows for split, rows in tables.items()}


def read_tables(recipe: Recipe, datasets: Mapping[str, ray.data.Dataset] | None) -> dict[str, Rows]:
    """The rows of each split."""
    columns = task_of(recipe.task).columns
    found = {}
    for split in SPLITS:
        given = datasets.get(split) if datasets is not None else None
        paths = getattr(recipe.data, split) if datasets is None else None
        if paths is not None:
            found[split] = read_rows(paths, recipe.data, columns, split)
        elif given is not None:
            where = f"the {split} dataset"
            found[split] = Rows(where, ((where, canonical(_whole(given, where), recipe.data, columns, where)),))
    if "train" not in found:
        raise DataError(
            "no training rows are given; set data.train to a parquet, csv or jsonl file, a folder or a glob"
        )
    _check_alike(found)
    return found


def _check_alike(splits: Mapping[str, Rows]) -> None:
    """DataError where one split has an optional column that another one lacks."""
    train = splits["train"]
    for rows in splits.values():
        for column in sorted(set(train.table.column_names) ^ set(rows.table.column_names)):
            has, lacks = (train, rows) if column in train.table.column_names else (rows, train)
            raise DataError(
                f"{lacks.given} has no column {column!r}, which {has.given} has; rows that train and rows that score "
                "are alike"
            )


def check_tables(recipe: Recipe, splits: Mapping[str, Rows], processor: Any = None) -> TaskSpec:
    """The task's options, completed by what the training rows teach; every row is checked against them."""
    task = task_of(recipe.task)
    train = splits["train"]
    try:
        spec = learn(task, recipe.task, [table for _, table in train.tables])
    except DataError as error:
        raise DataError(f"{train.given}: {error}") from None
    check_files(on_base(spec, processor), spec, [one for rows in splits.values() for one in rows.tables])
    return spec


def table_hash(table: pa.Table) -> str:
    """sha256 over a table's rows."""
    sink = hashlib.sha256()
    for batch in table.combine_chunks().to_batches():
        sink.update(batch.serialize())
    return sink.hexdigest()


def _whole(dataset: Any, where: str) -> pa.Table:
    """A dataset's blocks as one table; DataError when they are of different types."""
    tables = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    if not tables:
        raise DataError(f"{where} has no rows; it needs at least one")
    try:
        return pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where} has columns that change their type between blocks: {error}") from None


def _blocks(table: pa.Table, pieces: int, put: Any) -> Iterator[Block]:
    size = -(-table.num_rows // pieces)
    for offset in range(0, table.num_rows, size):
        piece = table.slice(offset, size).combine_chunks()
        yield Block(put(piece), offset, piece.num_rows)


# -------------------------------------------------------------------- in a worker


def load_splits(source: Source, task: Task, rank: int, world: int) -> Splits:
    """This worker's share of a source, encoded."""
    validation = source.splits.get("validation")
    train = _load(source.splits["train"], task, rank, world)
    if source.soft is not None:
        train = _taught(train, task, source.soft)
    held = None if validation is None else _load(validation, task, rank, world)
    return Splits(train, held, source.identity, source.groups)


def _load(split: tuple[Block, ...] | Encoded, task: Task, rank: int, world: int) -> Split:
    """Every `world`-th block, from block `rank` on; of encoded shards the rows of every `world`-th stretch."""
    import ray

    if isinstance(split, Encoded):
        return Split(StoredRows(stretches(split, world)[rank::world]), split.rows)
    mine = list(split)[rank::world]
    rows: dict[int, Features] = {}
    for block, table in zip(mine, ray.get([block.ref for block in mine]), strict=True):
        features = task.encode(table.to_pylist())
        rows |= {block.offset + number: feature for number, feature in enumerate(features)}
    return Split(rows, sum(block.rows for block in split))


def _taught(split: Split, task: Task, soft: Any) -> Split:
    """The rows with what their teacher says of each."""
    import ray

    assert isinstance(task, Distilled)
    told: SoftTargets = ray.get(soft)
    rows = {row: task.with_soft_targets(features, told[row]) for row, features in split.rows.items()}
    return Split(rows, split.total)


def jobs_of(recipes: Mapping[str, Recipe], sources: Mapping[str, Source]) -> list[Job]:
    """One job a recipe, on the source of the same name."""
    return [
        Job(name, name, sources[name].task, recipe.lora, recipe.training, recipe.augmentation, recipe.distillation)
        for name, recipe in recipes.items()
    ]
