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
from ray import tune
from ray.train import Result, RunConfig, ScalingConfig

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import DataError, RecipeError
from ray_lora.running.trainer import LoraTrainer, located, train_recipe
from ray_lora.training.history import read_history
from tests.ray.rows import alone, history, tiny_recipe, write_rows

pytestmark = pytest.mark.usefixtures("cluster")


def losses(run: Path, job: str = "tiny") -> list[float]:
    return [values["loss"] for _, values in sorted(history(run)[job].items())]


def test_two_workers_on_shards_give_the_losses_of_one(tiny_bert_folder: Path, tmp_path: Path) -> None:
    one = tiny_recipe(tiny_bert_folder, tmp_path, training__train_sampling_strategy="group_by_length")
    two = one.override({"name": "two", "training.per_device_train_batch_size": 4})
    LoraTrainer(two, scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}), quiet=True).fit()
    single, adapter = alone(one, tmp_path / "alone")
    assert len(single) == 24
    assert all(tensor.abs().max() > 1e-3 for name, tensor in adapter.tensors.items() if "lora_B" in name)  # it trained
    assert losses(tmp_path / "runs/two", "two") == pytest.approx(single, abs=1e-4)


def test_several_recipes_train_together_as_each_alone(tiny_bert_folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "other.jsonl", 50, seed=3)
    first = tiny_recipe(tiny_bert_folder, tmp_path, name="first", training__max_steps=8)
    second = first.override(
        {"name": "second", "lora.r": 8, "training.learning_rate": 3e-3, "data.train": str(tmp_path / "other.jsonl")}
    )
    results = LoraTrainer([first, second], quiet=True).fit()
    assert isinstance(results, list)
    for recipe, result in zip([first, second], results, strict=True):
        assert result.error is None
        assert result.checkpoint is not None
        packed, (_, single) = Adapter.load(Path(result.checkpoint.path)), alone(recipe, tmp_path / recipe.name)
        assert packed.head.keys() == single.head.keys()
        for name, tensor in single.tensors.items():
            assert (packed.tensors[name] - tensor).abs().max() < 1e-4


def test_a_killed_worker_costs_at_most_one_save_interval(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """Ray's own datasets in, a worker killed in the middle: the losses are those of a calm run on the files."""
    calm = tiny_recipe(tiny_bert_folder, tmp_path, training__num_train_epochs=20, training__eval_steps=60)
    shaken = calm.override({"name": "shaken", "data.train": None, "data.validation": None})
    datasets = {
        split: ray.data.read_json(str(tmp_path / f"{split}.jsonl"), lines=True) for split in ("train", "validation")
    }
    run = tmp_path / "runs/shaken"
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            time.sleep(0.02)
            steps = max(history(run).get("shaken") or {0: {}})
            if steps >= 20:
                for process in psutil.Process().children(recursive=True):
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(steps)

    killer = threading.Thread(target=kill)
    killer.start()
    result = LoraTrainer(shaken, datasets=datasets, quiet=True).fit()
    killer.join()
    assert isinstance(result, Result)
    assert result.error is None
    assert killed
    assert killed[0] < 240
    steps = [line["step"] for line in read_history(run / "jobs/shaken")]
    repeated = len(steps) - len(set(steps))
    assert repeated <= calm.training.save_steps  # all of one if it died between a last step and its checkpoint
    assert losses(run, "shaken") == pytest.approx(alone(calm, tmp_path / "alone")[0], abs=1e-5)


def test_train_recipe_puts_the_adapter_into_the_store(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, name="stored", training__max_steps=2)
    answer = train_recipe(recipe, quiet=True)
    assert answer["ref"] == "stored@1"
    assert set(answer["metrics"]) >= {"accuracy", "f1_macro"}
    assert Adapter.load(Path(answer["adapter"])).card.task == recipe.task
    with pytest.raises(RecipeError, match="holds another run"):
        LoraTrainer(recipe.override({"lora.r": 2}), quiet=True).fit()


def test_what_ray_fills_into_a_run_config_is_not_what_was_given(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """Else the same command would not find its own run again."""
    recipe = tiny_recipe(tiny_bert_folder, tmp_path)
    assert located(recipe, RunConfig()) == recipe
    assert located(recipe, tune.RunConfig(stop={"step": 3})) == recipe
    there = located(recipe, RunConfig(name="mine", storage_path=str(tmp_path / "there")))
    assert (there.name, there.output_dir) == ("mine", str(tmp_path / "there"))


def test_what_is_wrong_is_said_before_any_worker_starts(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path)
    with pytest.raises(RecipeError, match="exceeds the width 32"):
        LoraTrainer(recipe.override({"lora.r": 33}), quiet=True).fit()
    with pytest.raises(RecipeError, match=r"match no layer.*did you mean 'query'"):
        LoraTrainer(recipe.override({"lora.target_modules": ["querry"]}), quiet=True).fit()
    with pytest.raises(DataError, match=r"no column 'txt'.*did you mean 'text'"):
        LoraTrainer(recipe.override({"data.columns": {"text": "txt"}}), quiet=True).fit()
    alone = {"training.load_best_model_at_end": True, "data.validation": None}
    with pytest.raises(RecipeError, match=r"load_best_model_at_end compares scores on validation rows; set data"):
        LoraTrainer(recipe.override(alone), quiet=True).fit()
    (tmp_path / "odd.jsonl").write_text('{"text": "a b", "label": "maybe"}\n')
    with pytest.raises(DataError, match="row 1: label 'maybe' is not one of"):
        LoraTrainer(recipe.override({"data.validation": str(tmp_path / "odd.jsonl")}), quiet=True).fit()
    (tmp_path / "broken.jsonl").write_text('{"text": "a b", "label": "no"}\n{"text": \n')
    with pytest.raises(DataError, match=r"broken.jsonl' is broken at line 2"):
        LoraTrainer(recipe.override({"data.train": str(tmp_path / "broken.jsonl")}), quiet=True).fit()
