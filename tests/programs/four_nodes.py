"""A program: a training on four nodes of which three die, with what they have encoded, before the first step.

python -m tests.programs.four_nodes FOLDER        # with recipe.json; prints {"killed": [...], "adapter": ...}
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.train import Result

from ray_lora.bases.load import describe_base
from ray_lora.data.row_cache import FOLDER
from ray_lora.recipe import Recipe
from ray_lora.running import large, sources
from ray_lora.running.large import Encoded, opened, prepare_large
from ray_lora.running.trainer import LoraTrainer


class Nodes:
    """Four nodes of one CPU; each but the first may be killed, and its disk with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
        ray.init(address=self._cluster.address, logging_level="ERROR", log_to_driver=False)
        self.others: list[tuple[Any, Path]] = []
        for number in range(3):
            cache = folder / f"cache-{number}"
            added = self._cluster.add_node(num_cpus=1, object_store_memory=80 << 20, env_vars={FOLDER: str(cache)})
            self.others.append((added, cache))
        self._cluster.wait_for_nodes()
        self.killed: list[str] = []

    def kill(self, when: str) -> None:
        node, cache = self.others.pop()
        self._cluster.remove_node(node, allow_graceful=False)
        shutil.rmtree(cache, ignore_errors=True)
        self.killed.append(when)

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def main(folder: Path) -> None:
    recipe = Recipe.model_validate_json((folder / "recipe.json").read_text())
    large.LARGE_ROWS = sources.LARGE_ROWS = 1
    nodes = Nodes(folder)

    def tell(what: str, done: int, of: int, rows: int, of_rows: int | None) -> None:
        if what in ("reading", "encoding") and done >= 4 and what not in nodes.killed:
            nodes.kill(what)

    processor = describe_base(recipe.base).processor
    _, found = prepare_large(recipe, sources.files_of(recipe), processor, tell)
    rows_of(found["train"], recipe, processor)
    here = ray.get_runtime_context().get_node_id()
    elsewhere = [shard for shard in found["train"].shards if shard.node != here]
    assert elsewhere, "one node made all, and nothing was lost"
    nodes.kill("kept")
    rows_of(found["train"], recipe, processor)
    result = LoraTrainer(recipe, quiet=True).fit()
    assert isinstance(result, Result)
    assert result.checkpoint is not None
    nodes.close()
    print(json.dumps({"killed": nodes.killed, "adapter": result.checkpoint.path}))


def rows_of(split: Encoded, recipe: Recipe, processor: Any) -> None:
    """Every row is there once, and is its own."""
    from ray_lora.tasks import build_task

    tables = sources.read_tables(recipe, None)
    expected = build_task(sources.check_tables(recipe, tables), processor).encode(tables["train"].table.to_pylist())
    files = [opened(shard, split) for shard in split.shards]
    assert [file[row] for file in files for row in range(len(file))] == expected


if __name__ == "__main__":
    main(Path(sys.argv[1]))
