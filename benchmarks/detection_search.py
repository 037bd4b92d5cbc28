"""Makespan of a search of eight configurations of a detector on two cores, against plain Ray Tune with PEFT.

    python -m benchmarks.detection_search [--steps 60] [--side both|ours|plain]

YOLOX-Tiny at 256 x 256 on emoji of four classes on photographs (`examples/detection.yaml`), 8 pictures a step, float32,
ranks 8 and 16 x rates 5e-4, 1e-3, 2e-3, 4e-3 on every convolution but the prediction layers, which are trained, one
evaluation at the end. Seconds count from the moment Ray is up to the last trial's end.

The other side is a trial a process, two at a time with one thread each: `get_peft_model` on the same plain class, rows
encoded once a trial, AdamW (fused), the same schedule, clipping, loss (SimOTA) and order of pictures in a plain loop.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ray
from ray import tune

from benchmarks.machine import RESULTS, write
from benchmarks.processes import ProcessorTime
from pipelines.baselines import Data, answers_of, batches, head_names, plain_model, step
from pipelines.emoji_scenes import prepare
from ray_lora.recipe import Recipe

RANKS, RATES = (8, 16), (5e-4, 1e-3, 2e-3, 4e-3)
ROOT = Path(__file__).parents[1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--side", choices=("both", "ours", "plain"), default="both")
    asked = options.parse_args()
    base, path = prepare("data"), RESULTS / "detection-search.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() and asked.side != "both" else {}
    result.pop("machine", None)
    result |= {"what": __doc__, "steps": asked.steps}
    for side, measure in (("ours", ours), ("plain", plain)):
        if asked.side in ("both", side):
            with tempfile.TemporaryDirectory() as folder:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
                with ProcessorTime() as used:
                    result[side] = measure(told(base, asked.steps, folder))
                result[side]["processors"] = used.seconds
                ray.shutdown()
            print(side, round(result[side]["seconds"], 1), "s", flush=True)
            write("detection-search", result)
    if "ours" in result and "plain" in result:
        result["ratio"] = result["plain"]["seconds"] / result["ours"]["seconds"]
        print("ratio", round(result["ratio"], 2), write("detection-search", result))


def told(base: Path, steps: int, folder: str) -> Recipe:
    """What both sides train, alpha the same for both ranks."""
    rows = Path("data/detection").resolve()
    return Recipe.load(
        ROOT / "examples/detection.yaml",
        [
            f"base.model={base.resolve()}", f"training.max_steps={steps}", f"training.eval_steps={steps}",
            *(f"data.{split}={rows / split}.parquet" for split in ("train", "validation")),
            "search.early_stopping=none", "search.try_default=false", "tracking.uri=null", f"output_dir={folder}/runs",
            f"store={folder}/store",
        ],
    )  # fmt: skip


def ours(recipe: Recipe) -> dict[str, Any]:
    from ray_lora.search.tuner import LoraTuner

    space = {"lora.r": tune.grid_search(list(RANKS)), "training.learning_rate": tune.grid_search(list(RATES))}
    tuner = LoraTuner(recipe, param_space=space, quiet=True)
    tuner.fit()
    trials = [
        {"r": t.config["lora.r"], "learning_rate": t.config["training.learning_rate"], "map": t.metrics["map"]}
        for t in tuner.summary.trials
    ]
    return {"seconds": tuner.seconds, "packs": tuner.costs, "trials": trials}


def plain(recipe: Recipe) -> dict[str, Any]:
    space = {
        "r": tune.grid_search(list(RANKS)), "learning_rate": tune.grid_search(list(RATES)), "root": str(ROOT),
        "recipe": recipe.model_dump_json(),
    }  # fmt: skip
    began = time.perf_counter()
    tuner = tune.Tuner(
        tune.with_resources(plain_trial, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(metric="map", mode="max"),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
    )
    grid = tuner.fit()
    seconds = time.perf_counter() - began
    if grid.errors:
        raise grid.errors[0]
    trials = [
        {name: found.config[name] for name in ("r", "learning_rate")}
        | {"map": found.metrics["map"], "seconds": found.metrics["time_total_s"]}
        for found in grid
    ]
    return {"seconds": seconds, "trials": trials}


def plain_trial(config: dict[str, Any]) -> None:
    """One configuration: PEFT around the plain class, in a plain loop."""
    sys.path.insert(0, config["root"])
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import get_scheduler

    torch.set_num_threads(1)
    recipe = Recipe.model_validate_json(config["recipe"])
    data, training = Data(recipe, str(recipe.data.validation)), recipe.training
    task, plain = data.task, plain_model(recipe, data.task)
    own = head_names(data.base)
    convolutions = [name for name, part in plain.named_modules() if isinstance(part, torch.nn.Conv2d)]
    lora = LoraConfig(
        r=config["r"], lora_alpha=int(recipe.lora.lora_alpha),
        target_modules=[name for name in convolutions if not re.match(own, name)],
        modules_to_save=[name for name in convolutions if re.match(own, name)],
    )  # fmt: skip
    torch.manual_seed(training.seed)
    model = get_peft_model(plain, lora)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config["learning_rate"], weight_decay=0.0, fused=True)
    steps = training.max_steps
    warm = round(training.warmup_steps * steps)
    schedule = get_scheduler(training.lr_scheduler_type, optimizer, num_warmup_steps=warm, num_training_steps=steps)
    rows = data.rows("train")
    for chosen in batches(len(rows), training, training.seed, steps):
        step(model, task, [rows[row] for row in chosen])
        torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    held = data.rows("validation")
    tune.report({"map": task.score(answers_of(model.eval(), task, held), held)["map"]})


if __name__ == "__main__":
    main()
