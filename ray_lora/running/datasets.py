"""Ray datasets in place of files: of few rows a table on the driver, of many parquet files that Ray Data writes into
the run's folder, where all workers see them.

It knows datasets and folders, no tasks.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray_lora.atomic import expanded
from ray_lora.data.files import File, find_files
from ray_lora.errors import DataError
from ray_lora.recipe import Recipe

if TYPE_CHECKING:
    import ray.data

_ROWS = "rows"  # in the run's folder


def size_of(datasets: Mapping[str, ray.data.Dataset]) -> tuple[dict[str, Any], int, int]:
    """The datasets, computed; all their rows and bytes.

    Raises:
        DataError: one has no rows.
    """
    computed = {split: dataset.materialize() for split, dataset in datasets.items() if dataset is not None}
    rows = {split: dataset.count() for split, dataset in computed.items()}
    for split, count in rows.items():
        if not count:
            raise DataError(f"the {split} dataset has no rows; it needs at least one")
    return computed, sum(rows.values()), sum(dataset.size_bytes() for dataset in computed.values())


def write(recipe: Recipe, datasets: Mapping[str, Any]) -> dict[str, tuple[File, ...]]:
    """Computed datasets as files, their rows in the datasets' order; what an earlier run has written is replaced."""
    folder = expanded(recipe.output_dir).resolve() / recipe.name / _ROWS
    found = {}
    for split, dataset in datasets.items():
        shutil.rmtree(folder / split, ignore_errors=True)
        dataset.write_parquet(str(folder / split))
        found[split] = find_files(str(folder / split), split)
    return found
