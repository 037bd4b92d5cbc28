"""A first recipe for somebody's rows: what they are for is guessed, and some are held back where no file tells.

    begin(["reviews.csv"], Path())       # writes reviews.yaml, data/reviews/train.parquet and validation.parquet

The rows are checked as training checks them, so that what is written runs.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ray_lora.atomic import write_atomic
from ray_lora.data.check import check_tables, learn
from ray_lora.data.files import File, find_files
from ray_lora.data.guess import Guess, guess
from ray_lora.data.held_back import hold_back
from ray_lora.data.new_recipe import new_recipe
from ray_lora.data.places import Place
from ray_lora.data.rows import read_rows
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, Recipe
from ray_lora.tasks import task_class, task_of
from ray_lora.tasks.task import FILE_KINDS

_GENERAL = {"train", "training", "data", "dataset", "rows", "all", "test"}  # names that say nothing


def begin(
    given: Sequence[str],
    folder: Path,
    *,
    name: str | None = None,
    task: str | None = None,
    base: str | None = None,
    share: float = 0.2,
) -> dict[str, Json]:
    """Write `folder/NAME.yaml`, and where rows must be held back the two files that it reads.

    Args:
        given: files, a folder or a glob; where names tell splits, each is taken for what it is.
        name: of recipe and adapter. task, base: what the person says; else guessed.
        share: of rows that are held back to choose by, where no split is told.

    Returns:
        `{"recipe", "task", "columns", "why", "notes", "train", "validation", "rows", "store"}`.

    Raises:
        DataError: rows are wrong, or it cannot be told what they are for.
        RecipeError: a recipe of that name is there.
    """
    if task is not None:
        task_class(task)  # RecipeError for a name that is none
    train, validation = _splits(given)
    name = name or _name(given)
    path = folder / f"{name}.yaml"
    if path.exists():
        raise RecipeError(f"{str(path)!r} is there; take it away, or give another --name")
    found = guess(train, task)
    notes = list(found.notes)
    trains, chooses = _said(given, train), _said(given, validation) if validation else None
    recipe = _parsed(text := new_recipe(name, found, trains, chooses, base))
    rows = _checked(recipe)
    if validation is None and rows is not None:
        trains, chooses = _held_back(recipe, rows, found, share, folder / "data" / name)
        notes.append(f"{share:.0%} of the rows are held back to choose by: {chooses}")
        recipe = _parsed(text := new_recipe(name, found, trains, chooses, base))
    elif validation is None:
        notes.append("no rows are held back to choose by: give a folder whose names tell train and validation")
    write_atomic(path, text)
    return {
        "recipe": str(path), "task": found.task, "columns": found.columns, "why": found.why, "notes": list(notes),
        "train": trains, "validation": chooses, "rows": None if rows is None else rows.num_rows, "store": recipe.store,
    }  # fmt: skip


def _parsed(text: str) -> Recipe:
    return Recipe.parse(yaml.safe_load(text))


def _splits(given: Sequence[str]) -> tuple[tuple[File, ...], tuple[File, ...] | None]:
    """Files that train and files that choose, the latter where names tell them apart. Those of a test split do neither:
    a score on rows that chose says nothing."""
    train = find_files(list(given), "train")
    try:
        validation = find_files(list(given), "validation")
    except DataError:
        return train, None
    apart = {file.path for file in validation}.isdisjoint(file.path for file in train)
    return train, validation if apart else None


def _name(given: Sequence[str]) -> str:
    """The name of what is given, or of the folder around it where that says nothing."""
    for part in reversed(Path(Place.of(given[0]).plain).resolve().parts):
        word = re.sub(r"[^a-z0-9]+", "-", part.partition(".")[0].lower()).strip("-")
        if word and word not in _GENERAL and not word[0].isdigit():
            return word
    raise RecipeError(f"{given[0]!r} gives no name for the recipe; say --name")


def _said(given: Sequence[str], files: Sequence[File]) -> str:
    """How a recipe names these files: the folder or glob where it chooses them by itself, else the file."""
    if len(given) == 1 and (len(files) != 1 or files[0].members):
        return given[0]
    if len(files) != 1:
        raise DataError(f"{len(files)} files are given; give the folder or a glob that holds them, or one file")
    return files[0].path


def _checked(recipe: Recipe) -> pa.Table | None:
    """The rows, checked against the recipe; None of pictures and sounds, which training reads and checks."""
    kind = task_of(recipe.task)
    if any(FILE_KINDS.intersection(column.kinds) for column in kind.columns.values()):
        return None
    assert recipe.data.train is not None
    rows = read_rows(recipe.data.train, recipe.data, kind.columns)
    check_tables(kind, learn(kind, recipe.task, [table for _, table in rows.tables]), rows.tables)
    return rows.table


def _held_back(recipe: Recipe, rows: pa.Table, found: Guess, share: float, into: Path) -> tuple[str, str]:
    """The files of rows that train and of rows that choose, under the given file's own names."""
    columns = task_of(recipe.task).columns
    inputs = [column for column in rows.column_names if columns[column].required != "training"]
    label = "label" if "label" in rows.column_names and found.labels else None
    paths = [into / f"{split}.parquet" for split in ("train", "validation")]
    for path in paths:
        if path.exists():
            raise RecipeError(f"{str(path)!r} is there; take it away, or give another --name")
    for path, part in zip(paths, hold_back(rows, share, inputs, label), strict=True):
        named = part.rename_columns([found.columns.get(column, column) for column in part.column_names])
        buffer = io.BytesIO()
        pq.write_table(named, buffer)
        write_atomic(path, buffer.getvalue())
    return str(paths[0]), str(paths[1])
