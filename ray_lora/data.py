"""Rows: from parquet, csv or jsonl (local, `s3://`, `gs://`), or a Ray dataset, to checked blocks and encoded shards.

Every row is checked on the driver, before any worker starts. Blocks stay in Ray's object store; a worker takes its
share of them and encodes each row once for all adapters. This module knows rows and tasks; it knows nothing of engines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.json
import pyarrow.parquet

from ray_lora.errors import DataError, did_you_mean
from ray_lora.job import Job
from ray_lora.pack import Split, Splits
from ray_lora.recipe import DataSpec, Recipe, TaskSpec
from ray_lora.tasks import TASKS, Features, Task
from ray_lora.tasks.task import label_index

if TYPE_CHECKING:
    import ray.data

_FORMATS = "parquet, csv, jsonl"


@dataclass(frozen=True)
class Block:
    """A piece of one split in Ray's object store."""

    ref: Any  # ray.ObjectRef[pa.Table]
    offset: int  # number of its first row in the split
    rows: int


@dataclass(frozen=True)
class Source:
    """One recipe's checked data."""

    task: TaskSpec  # labels known
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
    task = recipe.task.model_copy(update={"labels": check_tables(recipe, tables)})
    identity: dict[str, str] = {}
    for split, (where, table) in tables.items():
        identity |= {f"{split}.path": where, f"{split}.rows": str(table.num_rows), f"{split}.sha256": _hash(table)}
    blocks = {split: tuple(_blocks(table, pieces, ray.put)) for split, (_, table) in tables.items()}
    return Source(task, blocks["train"], blocks.get("validation", ()), identity)


def inspect(recipe: Recipe) -> tuple[TaskSpec, dict[str, int]]:
    """A recipe's task with its labels, and the rows of each split; everything checked, nothing started."""
    tables = read_tables(recipe, None)
    task = recipe.task.model_copy(update={"labels": check_tables(recipe, tables)})
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
        table = read(path) if path is not None else pa.concat_tables(_tables(given))
        tables[split] = (where, canonical(table, recipe.data, TASKS[recipe.task.type].columns, where))
    if "train" not in tables:
        raise DataError("no training rows are given; set data.train to a parquet, csv or jsonl file")
    return tables


def check_tables(recipe: Recipe, tables: Mapping[str, tuple[str, pa.Table]]) -> tuple[str, ...]:
    """The labels, given or learned from the training rows; every row is checked against them."""
    labels = recipe.task.labels or learn_labels(tables["train"][1])
    for where, table in tables.values():
        check_rows(table, labels, where)
    return labels


def read(path: str) -> pa.Table:
    """A parquet, csv or jsonl file as a table.

    Raises:
        DataError: it is missing, empty, broken (with the line) or of another kind.
    """
    try:
        filesystem, inner = pa.fs.FileSystem.from_uri(path) if "://" in path else (pa.fs.LocalFileSystem(), path)
        info = filesystem.get_file_info(inner)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"data file {path!r} cannot be reached: {error}") from None
    if info.type == pa.fs.FileType.NotFound:
        raise DataError(f"data file {path!r} does not exist; give a {_FORMATS} file")
    if info.type != pa.fs.FileType.File:
        raise DataError(f"data path {path!r} is a folder; give one {_FORMATS} file")
    if info.size == 0:
        raise DataError(f"data file {path!r} is empty; it needs at least one row")
    kind = inner.rsplit(".", 1)[-1].lower()
    try:
        with filesystem.open_input_file(inner) as file:
            if kind in ("parquet", "pq"):
                table = pa.parquet.read_table(file)
            elif kind == "csv":
                table = pa.csv.read_csv(file, parse_options=pa.csv.ParseOptions(newlines_in_values=True))
            elif kind in ("jsonl", "ndjson", "json"):
                table = pa.json.read_json(file, parse_options=pa.json.ParseOptions(newlines_in_values=False))
            else:
                raise DataError(f"data file {path!r} ends in {kind!r}; give a {_FORMATS} file")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        line = _broken_line(filesystem, inner) if kind in ("jsonl", "ndjson", "json") else ""
        raise DataError(f"data file {path!r} is broken{line}: {str(error).splitlines()[0]}") from None
    if table.num_rows == 0:
        raise DataError(f"data file {path!r} has no rows; it needs at least one")
    return table


def _broken_line(filesystem: pa.fs.FileSystem, path: str) -> str:
    """` at line N` for the first line that is not a JSON object."""
    with filesystem.open_input_stream(path) as file:
        for number, line in enumerate(file.read().split(b"\n"), start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f" at line {number}"
            except ValueError:
                return f" at line {number}"
    return ""


def canonical(table: pa.Table, data: DataSpec, columns: Sequence[str], where: str) -> pa.Table:
    """The task's columns of a table, under the task's names."""
    unknown = sorted(set(data.columns) - set(columns))
    if unknown:
        raise DataError(f"data.columns names {unknown}; this task's columns are {', '.join(columns)}")
    picked = {}
    for column in columns:
        name = data.columns.get(column, column)
        if name not in table.column_names:
            raise DataError(
                f"{where} has no column {name!r}; it has {', '.join(table.column_names)}"
                f"{did_you_mean(name, table.column_names)}; map it with data.columns.{column}"
            )
        picked[column] = table.column(name)
    return pa.table(picked)


def learn_labels(table: pa.Table) -> tuple[str, ...]:
    """The distinct labels of a training table, sorted."""
    labels = tuple(sorted({str(value) for value in table.column("label").to_pylist() if value is not None}))
    if len(labels) < 2:
        raise DataError(
            f"the training rows have {len(labels)} different labels {list(labels)}; at least two are needed"
        )
    return labels


def check_rows(table: pa.Table, labels: Sequence[str], where: str) -> None:
    """Raise DataError for the first row that lacks a value or has a label that training does not know."""
    for column in table.column_names:
        values = table.column(column)
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise DataError(f"{where}, row {row + 1}: column {column!r} is empty; fill it or leave the row out")
    known: set[Any] = set()
    for row, label in enumerate(table.column("label").to_pylist()):
        if label not in known:
            try:
                label_index(label, labels)
            except DataError as error:
                raise DataError(f"{where}, row {row + 1}: {error}") from None
            known.add(label)


def _hash(table: pa.Table) -> str:
    sink = hashlib.sha256()
    for batch in table.combine_chunks().to_batches():
        sink.update(batch.serialize())
    return sink.hexdigest()


def _tables(dataset: Any) -> Iterator[pa.Table]:
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


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
