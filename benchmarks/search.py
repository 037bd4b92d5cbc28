"""Makespan of a 16-configuration search on two cores, against plain Ray Tune with one PEFT + HF Trainer trial a
process.

    python -m benchmarks.search [--side both|ours|plain] [--order grouped|random] [--asha] [--batch N]
        needs: pip install datasets
    python -m benchmarks.search --early-stopping [--seeds N] [--rows N]
        the same search, ours alone: with `search.early_stopping: rungs` beside every trial to its end, seed by seed;
        seeds that the result file has are not run again

MiniLM, sentiment on tweets, 1,024 rows to train, 512 to validate, 2 epochs, batch 16 unless given, ranks 2, 4, 8, 16
x rates 1e-4, 3e-4, 1e-3, 3e-3, all linear layers, one evaluation an epoch. Seconds count from the moment Ray is up to
the last trial's end.

The other side is written as Ray's and PEFT's documentation have it: one CPU a trial and two at a time, one thread each,
dynamic padding, bf16 autocast. With `--order grouped` both sides draw batches of like lengths (`group_by_length`),
which is the fastest setting the other side has; with `--order random` both draw them as Trainer does by default.

`cost` is where our seconds went: of the packs' first workers by what they did (`packs`), and processor seconds of every
process (`processors`).

With `--early-stopping`: `rows_saved` of all rows that are trained on and answered, `time` of the full search's seconds,
`comparable` the seconds until every configuration has a score at the first rung, as a share of the full search's
(`of_full`) and of its own (`of_own`); `regret` what the full search's best has more than this one's winner, by the full
search's scores, and `within` whether that is less than one standard deviation of such a score.
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
from ray_lora.inference.intervals import standard_error
from ray_lora.recipe import Recipe
from ray_lora.training.history import read_history

RANKS, RATES = (2, 4, 8, 16), (1e-4, 3e-4, 1e-3, 3e-3)
TRAIN, VALIDATION = "data/tweets/train-1024.parquet", "data/tweets/validation-512.parquet"
LABELS = ("negative", "positive")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--side", choices=("both", "ours", "plain"), default="both")
    options.add_argument("--order", choices=("grouped", "random"), default="grouped")
    options.add_argument("--asha", action="store_true")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--early-stopping", action="store_true")
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--rows", type=int, help="of training; all of the file's unless given")
    asked = options.parse_args()
    if asked.early_stopping:
        ending(asked.seeds, asked.rows)
        return
    order = "group_by_length" if asked.order == "grouped" else "random"
    name = "search" + ("-random" if order == "random" else "") + ("-asha" if asked.asha else "")
    name += f"-batch-{asked.batch}" if asked.batch != 16 else ""
    path = RESULTS / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() and asked.side != "both" else {}
    result.pop("machine", None)
    for side, measure in (("ours", ours), ("plain", plain)):
        if asked.side in ("both", side):
            ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
            result[side] = measure(asked.asha, order, asked.batch)
            ray.shutdown()
            print(side, round(result[side]["seconds"], 1), "s", flush=True)
            write(name, {"what": __doc__, **result})
    if "ours" in result and "plain" in result:
        result["ratio"] = result["plain"]["seconds"] / result["ours"]["seconds"]
        print("ratio", round(result["ratio"], 2))
    print(write(name, {"what": __doc__, **result}))


def ending(seeds: int, rows: int | None) -> None:
    """Early stopping beside the full search, seed by seed; the result file grows with each, and a seed that is in it is
    not run again."""
    path = RESULTS / "search-early-stopping.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    found: list[dict[str, Any]] = told["seeds"] if told.get("train_rows") == rows and told else []
    for seed in range(len(found), seeds):
        sides = {}
        for side in ("none", "rungs"):
            ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
            sides[side] = searched(side, seed, rows)
            ray.shutdown()
        found.append({"seed": seed, **compared(sides["none"], sides["rungs"]), **sides})
        print({key: value for key, value in found[-1].items() if key not in sides}, flush=True)
        write("search-early-stopping", {"what": __doc__, "train_rows": rows, "seeds": found})
    print(path)


def searched(early_stopping: str, seed: int, rows: int | None) -> dict[str, Any]:
    """One search of the grid: its seconds, and of each configuration what it cost and how it scored."""
    import pyarrow.parquet as pq

    from ray_lora.search.tuner import LoraTuner

    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder) / "train.parquet"
        table = pq.read_table(TRAIN)
        pq.write_table(table.slice(0, rows or table.num_rows), train)
        recipe = Recipe.parse(
            {
                "name": "benchmark",
                "task": {"labels": list(LABELS), "max_length": 128},
                "data": {"train": str(train), "validation": VALIDATION},
                "training": {"train_sampling_strategy": "group_by_length", "seed": seed},
                "search": {"early_stopping": early_stopping, "try_default": False},
                "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
                "output_dir": folder,
            }
        )
        space = {"lora.r": tune.grid_search(list(RANKS)), "training.learning_rate": tune.grid_search(list(RATES))}
        tuner = LoraTuner(recipe, param_space=space, quiet=True)
        with ProcessorTime() as used:
            tuner.fit()
        ended = time.time()
        summary, jobs = tuner.summary, Path(folder) / "benchmark/jobs"
        histories = {trial.name: evaluations(read_history(jobs / trial.name)) for trial in summary.trials}
        batch = recipe.training.per_device_train_batch_size
        trials = [
            {
                "config": trial.config,
                "accuracy": trial.metrics["accuracy"],
                "status": trial.status,
                "rungs": trial.rungs,
                "trained": batch * max(line["step"] for line in histories[trial.name]),
                "answered": sum(line["metrics"].get("validation_rows", summary.rows) for line in histories[trial.name]),
            }
            for trial in summary.trials
        ]
        came = max(lines[0]["time"] for lines in histories.values())
        cost = {"packs": tuner.costs, "processors": used.seconds}
        comparable = tuner.seconds - (ended - came)
        return {
            "seconds": tuner.seconds,
            "comparable": comparable,
            "rows": summary.rows,
            "cost": cost,
            "trials": trials,
        }


def evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if "accuracy" in line["metrics"]]


def compared(full: dict[str, Any], early: dict[str, Any]) -> dict[str, Any]:
    """What stopping saved, and what it cost."""
    scores = {json.dumps(trial["config"], sort_keys=True): trial["accuracy"] for trial in full["trials"]}
    best, winner = max(scores.values()), scores[json.dumps(early["trials"][0]["config"], sort_keys=True)]
    spent = {
        name: sum(t["trained"] + t["answered"] for t in side["trials"]) for name, side in (("f", full), ("e", early))
    }
    return {
        "rows_saved": 1 - spent["e"] / spent["f"],
        "time": early["seconds"] / full["seconds"],
        "comparable": {
            "of_full": early["comparable"] / full["seconds"],
            "of_own": early["comparable"] / early["seconds"],
        },
        "regret": best - winner,
        "within": best - winner <= standard_error(best, full["rows"]),
    }


def ours(asha: bool, order: str, batch: int) -> dict[str, Any]:
    from ray_lora.search.tuner import LoraTuner

    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.parse(
            {
                "name": "benchmark",
                "task": {"labels": list(LABELS), "max_length": 128},
                "data": {"train": TRAIN, "validation": VALIDATION},
                "training": {"train_sampling_strategy": order, "per_device_train_batch_size": batch},
                "search": {
                    "scheduler": "asha" if asha else "fifo",
                    "early_stopping": "none",  # one evaluation an epoch, as the other side has it
                    "try_default": False,
                },
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


def plain(asha: bool, order: str, batch: int) -> dict[str, Any]:
    started = time.perf_counter()
    scheduler = tune.schedulers.ASHAScheduler(max_t=10_000, grace_period=1) if asha else None
    tuner = tune.Tuner(
        tune.with_resources(plain_trial, {"cpu": 1}),
        param_space={
            "r": tune.grid_search(list(RANKS)),
            "learning_rate": tune.grid_search(list(RATES)),
            "base": str(locate("minilm")),
            "order": order,
            "batch": batch,
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
            per_device_train_batch_size=config["batch"],
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
