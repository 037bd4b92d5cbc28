"""Rows and recipes for tests that train on the tiny base."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.recipe import Recipe
from ray_lora.running.sources import check_tables, read_tables
from ray_lora.tasks import build_task
from ray_lora.training.history import read_history
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack, Split, Splits

LABELS = ("no", "yes")


def write_rows(path: Path, count: int, seed: int) -> Path:
    """Short texts whose label is told by one of their words, as jsonl."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(LABELS)
        words = [draw.choice("abcdefgh") for _ in range(draw.randint(2, 7))]
        words.insert(draw.randrange(len(words)), {"no": "bad", "yes": "good"}[label])
        rows.append({"text": " ".join(words), "label": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_recipe(base: Path, folder: Path, **overrides: Any) -> Recipe:
    """A recipe that trains in a second: 96 rows, batches of 8, float32."""
    train, validation = folder / "train.jsonl", folder / "validation.jsonl"
    if not train.exists():
        write_rows(train, 96, seed=0)
        write_rows(validation, 40, seed=1)
    recipe = Recipe.parse(
        {
            "name": "tiny",
            "base": {"model": str(base), "dtype": "float32"},
            "task": {"labels": list(LABELS), "max_length": 16},
            "data": {"train": str(train), "validation": str(validation)},
            "lora": {"r": 4},
            "training": {
                "num_train_epochs": 2,
                "learning_rate": 1e-2,
                "per_device_train_batch_size": 8,
                "logging_steps": 1,
                "eval_steps": 6,
                "save_steps": 4,
            },
            "search": {"try_default": False},
            "tracking": {"uri": None},
            "store": str(folder / "store"),
            "output_dir": str(folder / "runs"),
        }
    )
    return recipe.override({key.replace("__", "."): value for key, value in overrides.items()})


def table(path: Path) -> pa.Table:
    return pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])


def in_files(rows: pa.Table, folder: Path, files: int) -> str:
    """The rows in so many files, of which each has row groups of other sizes."""
    folder.mkdir(parents=True)
    ends = [rows.num_rows * number // files for number in range(files + 1)]
    for number, (begin, end) in enumerate(itertools.pairwise(ends)):
        part = rows.slice(begin, end - begin)
        pq.write_table(part, folder / f"part-{number:03}.parquet", row_group_size=1 + number % 5)
    return str(folder)


def history(run: Path) -> dict[str, dict[int, dict[str, float]]]:
    """job -> step -> logged values of a run's folder."""
    return {
        folder.name: {line["step"]: line["metrics"] for line in read_history(folder)} for folder in run.glob("jobs/*")
    }


def alone(recipe: Recipe, output: Path, state: Path | None = None) -> tuple[list[float], Adapter]:
    """The recipe's losses (logging_steps=1) and adapter, trained in this process without Ray.

    Args:
        state: the folder of a checkpoint from which it goes on.
    """
    tables = read_tables(recipe, None)
    spec = check_tables(recipe, tables)
    engine = AdapterEngine(load_base(recipe.base), slots=1, max_rank=recipe.lora.r, train=True)
    task = build_task(spec, engine.base.processor)
    encoded = {split: task.encode(rows.table.to_pylist()) for split, rows in tables.items()}
    splits = {split: Split(dict(enumerate(rows)), len(rows)) for split, rows in encoded.items()}
    pack = Pack(engine, {"data": Splits(splits["train"], splits["validation"])}, output=output)
    pack.join(Job("alone", "data", spec, recipe.lora, recipe.training), state)
    losses: list[float] = []
    while pack.members:
        losses += [report.loss for report in pack.step() if report.loss is not None]
    return losses, Adapter.load(output / "alone/adapter")
