"""The commands that start Ray, as a user's script sees them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.cli import main
from ray_lora.inference.stored import predict_ref
from tests.ray.rows import tiny_recipe, write_rows

pytestmark = pytest.mark.usefixtures("running_ray")


@pytest.fixture(scope="module")
def recipe(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    path = folder / "recipe.yaml"
    path.write_text(tiny_recipe(tiny_bert_folder, folder, training__max_steps=12).model_dump_json())
    return path


def program(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray_lora", *map(str, arguments), "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def test_from_a_strangers_csv_to_an_answer(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """In five commands: init, plan, search, serve, and the question."""
    rows = [json.loads(line) for line in write_rows(tmp_path / "rows.jsonl", 96, seed=0).read_text().splitlines()]
    lines = ["number,said,verdict", *(f"{n},{row['text']},{row['label']}" for n, row in enumerate(rows))]
    (tmp_path / "moods.csv").write_text("\n".join(lines))
    begun = answer(program("init", tmp_path / "moods.csv", "--base", tiny_bert_folder, "--output", tmp_path))
    assert begun["columns"] == {"text": "said", "label": "verdict"}
    recipe = Path(begun["recipe"])
    small = [f"store={tmp_path}/store", f"output_dir={tmp_path}/runs", "tracking.uri=null", "training.max_steps=12"]
    small.append("scaling.packs=1")  # a second one would have nothing to do for twelve steps
    assert answer(program("plan", recipe, *small))["slots"] > 1
    space = "search.space={lora.r: {grid_search: [2, 4]}}"
    found = answer(program("search", recipe, "name=searched", space, *small, "base.dtype=float32"))
    assert {"best", "trials", "seconds"} <= set(found)
    assert [set(trial) >= {"config", "metrics", "status", "adapter"} for trial in found["trials"]] == [True] * 3
    assert found["default"]["config"] == {"lora.r": 8}  # the recipe's own value is tried beside the two
    assert all(Adapter.load(Path(trial["adapter"])).card.task is not None for trial in found["trials"])
    command = [sys.executable, "-m", "ray_lora", "serve", "--store", tmp_path / "store", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as endpoint:
        try:
            assert endpoint.stdout is not None
            address = json.loads(endpoint.stdout.readline())["address"]
            asked = {"model": "searched@champion", "inputs": "a good b"}
            reply = httpx.post(f"{address}/v1/predict", json=asked, timeout=60).json()
        finally:
            endpoint.send_signal(signal.SIGINT)
    assert endpoint.returncode == 0
    [local] = predict_ref(found["best"]["ref"], ["a good b"], str(tmp_path / "store"))["predictions"]
    assert reply["predictions"][0]["label"] == local["label"]
    assert reply["predictions"][0]["score"] == pytest.approx(local["score"], abs=1e-2)


def test_train_answers_and_refuses_another_run_of_its_name(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "name=trained", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told) >= {"ref", "adapter", "metrics", "seconds"}
    assert told["ref"] == "trained@1"
    assert Adapter.load(Path(told["adapter"])).config.r == 4
    assert main(["train", str(recipe), "name=trained", "lora.r=2", "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "another run of that name" in said.err
    assert "Traceback" not in said.err
