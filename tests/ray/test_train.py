"""Training with Ray Train: shards, several adapters at once, killed workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.train import Result, ScalingConfig

from ray_lora.adapter import Adapter
from ray_lora.errors import DataError, RecipeError
from ray_lora.train import LoraTrainer, train_recipe
from tests.ray.rows import history, tiny_recipe, write_rows

pytestmark = pytest.mark.usefixtures("cluster")


def losses(run: Path, job: str = "tiny") -> list[float]:
    return [values["loss"] for _, values in sorted(history(run)[job].items())]


def test_two_workers_on_shards_give_the_losses_of_one(tiny_bert_folder: Path, tmp_path: Path) -> None:
    one = tiny_recipe(tiny_bert_folder, tmp_path, name="one")
    two = tiny_recipe(tiny_bert_folder, tmp_path, name="two", training__per_device_train_batch_size=4)
    LoraTrainer(one, quiet=True).fit()
    LoraTrainer(two, scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}), quiet=True).fit()
    alone, shared = losses(tmp_path / "runs/one", "one"), losses(tmp_path / "runs/two", "two")
    assert len(alone) == 24
    assert shared == pytest.approx(alone, abs=1e-4)
    assert alone[-1] < alone[0]


def test_ray_datasets_are_taken_as_they_are(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, name="files", training__max_steps=3)
    LoraTrainer(recipe, quiet=True).fit()
    datasets = {split: ray.data.read_json(str(tmp_path / f"{split}.jsonl"), lines=True) for split in ("train", "validation")}
    same = recipe.override({"name": "datasets", "data.train": None, "data.validation": None})
    LoraTrainer(same, datasets=datasets, quiet=True).fit()
    assert losses(tmp_path / "runs/datasets", "datasets") == losses(tmp_path / "runs/files", "files")


def test_several_recipes_train_together_as_each_alone(tiny_bert_folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "other.jsonl", 50, seed=3)
    first = tiny_recipe(tiny_bert_folder, tmp_path, name="first", training__max_steps=8)
    second = first.override({"name": "second", "lora.r": 8, "training.learning_rate": 3e-3, "data.train": str(tmp_path / "other.jsonl")})
    results = LoraTrainer([first, second], quiet=True).fit()
    assert isinstance(results, list) and all(result.error is None for result in results)
    alone = LoraTrainer(second.override({"output_dir": str(tmp_path / "alone")}), quiet=True).fit()
    assert isinstance(alone, Result) and alone.checkpoint is not None and results[1].checkpoint is not None
    packed, single = Adapter.load(Path(results[1].checkpoint.path)), Adapter.load(Path(alone.checkpoint.path))
    for name, tensor in single.tensors.items():
        assert (packed.tensors[name] - tensor).abs().max() < 1e-4


def test_a_killed_worker_costs_at_most_one_save_interval(tiny_bert_folder: Path, tmp_path: Path) -> None:
    calm = tiny_recipe(tiny_bert_folder, tmp_path, name="calm", training__num_train_epochs=20, training__eval_steps=60)
    LoraTrainer(calm, quiet=True).fit()
    shaken = calm.override({"name": "shaken"})
    run = tmp_path / "runs/shaken"
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            time.sleep(0.02)
            if (run / "history.jsonl").exists() and (steps := max(history(run).get("shaken", {0: {}}))) >= 20:
                for process in psutil.process_iter(["cmdline"]):
                    if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(steps)

    killer = threading.Thread(target=kill)
    killer.start()
    result = LoraTrainer(shaken, quiet=True).fit()
    killer.join()
    assert isinstance(result, Result) and result.error is None
    assert killed and killed[0] < 240
    lines = [line for line in (run / "history.jsonl").read_text().splitlines()]
    assert 240 <= len(lines) <= 240 + 4 + 60  # steps logged twice: those since the last save, and what was in flight
    assert losses(run, "shaken") == pytest.approx(losses(tmp_path / "runs/calm", "calm"), abs=1e-6)


def test_train_recipe_puts_the_adapter_into_the_store(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, name="stored", training__max_steps=2)
    answer = train_recipe(recipe, quiet=True)
    assert answer["ref"] == "stored@1"
    assert set(answer["metrics"]) >= {"accuracy", "f1_macro"}
    assert Adapter.load(Path(answer["adapter"])).card.task == recipe.task
    with pytest.raises(RecipeError, match="holds another run"):
        LoraTrainer(recipe.override({"lora.r": 2}), quiet=True).fit()


def test_what_is_wrong_is_said_before_any_worker_starts(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path)
    with pytest.raises(RecipeError, match="exceeds the width 32"):
        LoraTrainer(recipe.override({"lora.r": 33}), quiet=True).fit()
    with pytest.raises(RecipeError, match="match no layer.*did you mean 'query'"):
        LoraTrainer(recipe.override({"lora.target_modules": ["querry"]}), quiet=True).fit()
    with pytest.raises(DataError, match="no column 'txt'.*did you mean 'text'"):
        LoraTrainer(recipe.override({"data.columns": {"text": "txt"}}), quiet=True).fit()
    (tmp_path / "odd.jsonl").write_text('{"text": "a b", "label": "maybe"}\n')
    with pytest.raises(DataError, match="row 1: label 'maybe' is not one of"):
        LoraTrainer(recipe.override({"data.validation": str(tmp_path / "odd.jsonl")}), quiet=True).fit()
    (tmp_path / "broken.jsonl").write_text('{"text": "a b", "label": "no"}\n{"text": \n')
    with pytest.raises(DataError, match=r"broken.jsonl' is broken at line 2"):
        LoraTrainer(recipe.override({"data.train": str(tmp_path / "broken.jsonl")}), quiet=True).fit()
