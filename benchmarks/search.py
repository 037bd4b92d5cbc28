"""Makespan of a 16-configuration search on two cores, against plain Ray Tune with one PEFT + HF Trainer trial a
process.

    python -m benchmarks.search [--side both|ours|plain] [--order grouped|random] [--asha]
        needs: pip install datasets

MiniLM, sentiment on tweets, 1,024 rows to train, 512 to validate, 2 epochs, batch 16, ranks 2, 4, 8, 16 x rates 1e-4,
3e-4, 1e-3, 3e-3, all linear layers, one evaluation an epoch. Seconds count from the moment Ray is up to the last
trial's end.

The other side is written as Ray's and PEFT's documentation have it: one CPU a trial and two at a time, one thread each,
dynamic padding, bf16 autocast. With `--order grouped` both sides draw batches of like lengths (`group_by_length`),
which is the fastest setting the other side has; with `--order random` both draw them as Trainer does by default.

`cost` is where our seconds went: of the packs' first workers by what they did (`packs`), and processor seconds of every
process (`processors`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ray
from ray import tune

from benchmarks.machine import RESULTS, write
from benchmarks.processes import ProcessorTime
from ray_lora.bases.load import locate
from ray_lora.recipe import Recipe

RANKS, RATES = (2, 4, 8, 16), (1e-4, 3e-4, 1e-3, 3e-3)
TRAIN, VALIDATION = "data/tweets/train-1024.parquet", "data/tweets/validation-512.parquet"
LABELS = ("negative", "positive")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--side", choices=("both", "ours", "plain"), default="both")
    options.add_argument("--order", choices=("grouped", "random"), default="grouped")
    options.add_argument("--asha", action="store_true")
    asked = options.parse_args()
    order = "group_by_length" if asked.order == "grouped" else "random"
    name = "search" + ("-random" if order == "random" else "") + ("-asha" if asked.asha else "")
    path = RESULTS / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() and asked.side != "both" else {}
    result.pop("machine", None)
    for side, measure in (("ours", ours), ("plain", plain)):
        if asked.side in ("both", side):
            ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
            result[side] = measure(asked.asha, order)
            ray.shutdown()
            print(side, round(result[side]["seconds"], 1), "s", flush=True)
            write(name, {"what": __doc__, **result})
    if "ours" in result and "plain" in result:
        result["ratio"] = result["plain"]["seconds"] / result["ours"]["seconds"]
        print("ratio", round(result["ratio"], 2))
    print(write(name, {"what": __doc__, **result}))


def ours(asha: bool, order: str) -> dict[str, Any]:
    from ray_lora.search.tuner import LoraTuner

    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.parse(
            {
                "name": "benchmark",
                "task": {"labels": list(LABELS), "max_length": 128},
                "data": {"train": TRAIN, "validation": VALIDATION},
                "training": {"train_sampling_strategy": order},
                "search": {"scheduler": "asha" if asha else "fifo"},
                "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
                "output_dir": folder,
            }
        )
        space = {"lora.r": tune.grid_search(list(RANKS)), "training.learning_rate": tune.grid_search(list(RATES))}
        tuner = LoraTuner(recipe, param_space=space, quiet=True)
        with ProcessorTime() as used:
            tuner.fit()
        trials = [
            {"r": t.config["lora.r"], "learning_rate": t.config["training.learning_rate"], **scores(t.metrics)}
            for t in tuner.summary.trials
        ]
        return {"seconds": tuner.seconds, "cost": {"packs": tuner.costs, "processors": used.seconds}, "trials": trials}


def scores(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics.get(name) for name in ("accuracy", "epoch")}


def plain(asha: bool, order: str) -> dict[str, Any]:
    started = time.perf_counter()
    scheduler = tune.schedulers.ASHAScheduler(max_t=10_000, grace_period=1) if asha else None
    tuner = tune.Tuner(
        tune.with_resources(plain_trial, {"cpu": 1}),
        param_space={
            "r": tune.grid_search(list(RANKS)),
            "learning_rate": tune.grid_search(list(RATES)),
            "base": str(locate("minilm")),
            "order": order,
            "train": str(Path(TRAIN).resolve()),
            "validation": str(Path(VALIDATION).resolve()),
        },
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", scheduler=scheduler),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
    )
    grid = tuner.fit()
    seconds = time.perf_counter() - started
    if grid.errors:
        raise grid.errors[0]
    trials = [
        {name: r.config[name] for name in ("r", "learning_rate")}
        | {"seconds": r.metrics["time_total_s"]}
        | scores(r.metrics)
        for r in grid
    ]
    return {"seconds": seconds, "trials": trials}


def plain_trial(config: dict[str, Any]) -> None:
    """One configuration as PEFT's and Ray's documentation would have it."""
    import numpy as np
    import torch
    from datasets import load_dataset
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(config["base"])
    rows = load_dataset("parquet", data_files={"train": config["train"], "validation": config["validation"]})

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        encoded = dict(tokenizer(batch["text"], truncation=True, max_length=128))
        encoded["labels"] = [LABELS.index(label) for label in batch["label"]]
        return encoded

    encoded = rows.map(encode, batched=True, remove_columns=rows["train"].column_names)
    model = AutoModelForSequenceClassification.from_pretrained(config["base"], num_labels=2)
    model = get_peft_model(
        model, LoraConfig(task_type=TaskType.SEQ_CLS, r=config["r"], lora_alpha=16, target_modules="all-linear")
    )

    class Report(TrainerCallback):  # type: ignore[misc]
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
            tune.report({"accuracy": metrics["eval_accuracy"], "epoch": metrics["epoch"]})

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            num_train_epochs=2,
            learning_rate=config["learning_rate"],
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=True,
            train_sampling_strategy=config["order"],
            disable_tqdm=True,
        ),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())},
        callbacks=[Report()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
