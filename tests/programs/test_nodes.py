"""Clusters of four nodes with a disk each, of which some die: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ray_lora.adapters.adapter import Adapter
from ray_lora.data.row_cache import FOLDER
from tests.documents import ROOT
from tests.ray.answered import check, make_world, right_answers
from tests.ray.rows import alone, in_files, table, tiny_recipe


def test_nodes_die_while_they_read_and_encode(tiny_bert_folder: Path, tmp_path: Path, own_ray: dict[str, str]) -> None:
    """Four nodes with a disk each: one dies while files are read, one while they are encoded, one before workers want
    what it had."""
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, training__num_train_epochs=1)
    expected = alone(recipe, tmp_path / "alone")[1]
    folder = in_files(table(tmp_path / "train.jsonl"), tmp_path / "rows", 24)
    (tmp_path / "recipe.json").write_text(recipe.override({"data.train": folder}).model_dump_json())
    environment = own_ray | {FOLDER: str(tmp_path / "kept")}
    program = [sys.executable, "-m", "tests.programs.four_nodes", str(tmp_path)]
    done = subprocess.run(program, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == ["reading", "encoding", "kept"]
    found = Adapter.load(Path(told["adapter"]))
    for name, tensor in expected.tensors.items():
        assert (found.tensors[name] - tensor).abs().max() < 1e-4, name


def test_nodes_that_die_while_they_answer(tmp_path: Path, own_ray: dict[str, str]) -> None:
    right = right_answers(make_world(tmp_path))
    program = [sys.executable, "-m", "tests.programs.nodes_that_answer", str(tmp_path)]
    done = subprocess.run(program, env=own_ray, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["killed"], told["rows"], told["errors"]) == (2, 360, 6)
    check(tmp_path / "out", right)
