"""A recipe's rows for its workers: checked tables, as blocks in Ray's object store, as encoded shards.

Every row is checked on the driver, before any worker starts. A worker takes its share of the blocks and encodes each
row once for all adapters. This module knows rows and tasks; it knows nothing of engines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ray_lora.data.check import check_table, learn
from ray_lora.data.read import canonical, read, roles
from ray_lora.errors import DataError
from ray_lora.recipe import Recipe, TaskSpec
from ray_lora.tasks import Features, Task, task_of
from ray_lora.training.job import Job
from ray_lora.training.pack import Split, Splits

if TYPE_CHECKING:
    import ray.data


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
    train: tuple[Block, ...]
    validation: tuple[Block, ...]
    identity: dict[str, str]  # path, rows and sha256 of each split


def prepare(recipe: Recipe, datasets: Mapping[str, ray.data.Dataset] | None = None, pieces: int = 4) -> Source:
    """Read and check a recipe's rows and put them into the object store.

    Args:
        datasets: `{"train": ..., "validation": ...}` in place of the recipe's files.
        pieces: blocks to cut each split into, at least one a worker.

    Raises:
        DataError: a file, a column or a row is wrong; the message says which.
    """
    import ray

    tables = read_tables(recipe, datasets)
    task = check_tables(recipe, tables)
    identity: dict[str, str] = {}
    for split, (where, table) in tables.items():
        identity |= {f"{split}.path": where, f"{split}.rows": str(table.num_rows), f"{split}.sha256": _hash(table)}
    blocks = {split: tuple(_blocks(table, pieces, ray.put)) for split, (_, table) in tables.items()}
    return Source(task, blocks["train"], blocks.get("validation", ()), identity)


def inspect(recipe: Recipe) -> tuple[TaskSpec, dict[str, int]]:
    """A recipe's task, completed by its training rows, and the number of rows of each split; nothing is started."""
    tables = read_tables(recipe, None)
    task = check_tables(recipe, tables)
    return task, {split: table.num_rows for split, (_, table) in tables.items()}


def read_tables(recipe: Recipe, datasets: Mapping[str, ray.data.Dataset] | None) -> dict[str, tuple[str, pa.Table]]:
    """(where it came from, the task's columns) of each split."""
    tables = {}
    for split in ("train", "validation"):
        given = datasets.get(split) if datasets is not None else None
        path = getattr(recipe.data, split) if datasets is None else None
        if given is None and path is None:
            continue
        where = path or f"the {split} dataset"
        columns = task_of(recipe.task).columns
        table = read(path, roles(recipe.data, columns)) if path is not None else _whole(given, where)
        tables[split] = (where, canonical(table, recipe.data, columns, where))
    if "train" not in tables:
        raise DataError("no training rows are given; set data.train to a parquet, csv or jsonl file")
    _check_alike(tables)
    return tables


def _check_alike(tables: Mapping[str, tuple[str, pa.Table]]) -> None:
    """DataError where one file has an optional column that another one lacks."""
    source, train = tables["train"]
    for where, table in tables.values():
        for column in sorted(set(train.column_names) ^ set(table.column_names)):
            has, lacks = (source, where) if column in train.column_names else (where, source)
            raise DataError(
                f"{lacks} has no column {column!r}, which {has} has; rows that train and rows that score are alike"
            )


def check_tables(recipe: Recipe, tables: Mapping[str, tuple[str, pa.Table]]) -> TaskSpec:
    """The task's options, completed by what the training rows teach; every row is checked against them."""
    task = task_of(recipe.task)
    source, rows = tables["train"]
    try:
        spec = learn(task, recipe.task, [rows])
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    for where, table in tables.values():
        check_table(task, spec, table, where)
    return spec


def _hash(table: pa.Table) -> str:
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
    """This worker's encoded share of a source: every `world`-th block, from block `rank` on."""
    train = _load(source.train, task, rank, world)
    return Splits(train, _load(source.validation, task, rank, world) if source.validation else None)


def _load(blocks: Sequence[Block], task: Task, rank: int, world: int) -> Split:
    import ray

    mine = list(blocks)[rank::world]
    rows: dict[int, Features] = {}
    for block, table in zip(mine, ray.get([block.ref for block in mine]), strict=True):
        features = task.encode(table.to_pylist())
        rows |= {block.offset + number: feature for number, feature in enumerate(features)}
    return Split(rows, sum(block.rows for block in blocks))


def jobs_of(recipes: Mapping[str, Recipe], sources: Mapping[str, Source]) -> list[Job]:
    """One job a recipe, on the source of the same name."""
    return [Job(name, name, sources[name].task, recipe.lora, recipe.training) for name, recipe in recipes.items()]
