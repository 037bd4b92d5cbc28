"""One adapter for each of 1,024 people: beside a Ray task a person with PEFT, and one process that loops PEFT.

    python -m benchmarks.personal [--people 1024] [--rows 64] [--sample 32] [--only ours tasks loop resident]

People are shops (`pipelines.shops`), the base MiniLM, rank 4, all on this machine's cores; where the processor
multiplies bfloat16 natively, ours holds the base in it and the others have autocast (Trainer's `bf16`). Everyone begins
as the city's adapter, which `ours` trains too (on half of its people's rows, 6,144: as many as the pipeline's 64 shops
a city give in two epochs) and the others are given; three quarters of the rows teach, for four epochs at most, the rest
chooses the epoch and ends it after two without a gain.

    ours      `ray-lora personal` as a program: seconds of all of it, groups, start and tables included
    tasks     a Ray task a person, one CPU each, with transformers' Trainer over PEFT as its users write it: each loads
              the base. Of `--sample` people; seconds of all people are extrapolated
    loop      one process on all cores that keeps the base and loops PEFT over people with the same Trainer; likewise
    resident  one training process with 32 and with `--people` adapters in slots: memory, milliseconds of a step a row

Each part is written as soon as it is known, and a second call goes on with those that are missing; `--again` names
those to measure anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks.machine import RESULTS, machine
from pipelines import shops

ROOT = Path(__file__).parents[1]
PARTS = ("ours", "tasks", "loop", "resident")
EPOCHS, RATE, BATCH, HELD_OUT, PATIENCE = 4, 1e-3, 8, 0.25, 2
CITY_EPOCHS = 0.5
FEW = 32  # residents that many are compared with
STEPS = 12  # of each size, after two that are not counted


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--people", type=int, default=1024)
    options.add_argument("--rows", type=int, default=64)
    options.add_argument("--sample", type=int, default=32, help="people of the two rivals")
    options.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    options.add_argument("--again", nargs="*", default=(), choices=PARTS)
    options.add_argument("--part", help="measure it in this process and print it as JSON")
    asked = options.parse_args()
    rows = shops.write_rows("data", asked.people, asked.rows) / "train.parquet"
    if asked.part:
        print(json.dumps(MEASURES[asked.part](rows, asked)))
        return
    settings = {"people": asked.people, "rows": asked.rows, "sample": asked.sample}
    path = RESULTS / "personal.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    parts: dict[str, Any] = known.get("parts", {}) if known.get("settings") == settings else {}
    for name in asked.only:
        if name not in parts or name in asked.again:
            print(f"== {name}", flush=True)
            command = [sys.executable, "-m", "benchmarks.personal", "--part", name]
            command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            parts[name] = json.loads(done.stdout.splitlines()[-1]) | {"machine": machine()}
            path.write_text(json.dumps({"what": __doc__, "settings": settings, "parts": parts}, indent=2) + "\n")
        print(json.dumps({key: value for key, value in parts[name].items() if key != "machine"}), flush=True)
    if {"ours", "tasks", "loop"} <= parts.keys():
        ours = parts["ours"]["seconds"]
        print({name: round(parts[name]["seconds of all"] / ours, 2) for name in ("tasks", "loop")}, "times ours")


# -------------------------------------------------------------------- ours


def ours(rows: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the program, and what it says."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ray_lora", "personal", *settings(rows, Path(folder)), "--json"]
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - began
    told = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": seconds, "own": told["own"], "accuracy": [told["accuracy before"], told["accuracy after"]]}


def settings(rows: Path, folder: Path) -> list[str]:
    return [
        str(ROOT / "examples/personal.yaml"), f"data.train={rows}", "tracking.uri=null",
        f"store={folder / 'store'}", f"output_dir={folder / 'runs'}", f"personal.num_train_epochs={EPOCHS}",
        f"training.num_train_epochs={CITY_EPOCHS}",
        f"personal.held_out={HELD_OUT}", f"personal.learning_rate={RATE}",
    ]  # fmt: skip


# -------------------------------------------------------------------- PEFT, as its users write it


def tasks(rows: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """A Ray task a person."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        start = city(Path(folder))
        people = of_people(rows)
        some = dict(list(people.items())[: asked.sample])
        ray.init(log_to_driver=False, include_dashboard=False)
        task = ray.remote(num_cpus=1)(alone)
        ray.get([task.remote([], str(start), str(ROOT)) for _ in range(int(ray.cluster_resources()["CPU"]))])  # imports
        began = time.perf_counter()
        found = ray.get([task.remote(mine, str(start), str(ROOT)) for mine in some.values()])
        seconds = time.perf_counter() - began
        ray.shutdown()
    return extrapolated(seconds, len(some), len(people), found)


def loop(rows: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """One process, one base."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        start = city(Path(folder))
        people = of_people(rows)
        some = dict(list(people.items())[: asked.sample])
        base = plain_base()
        began = time.perf_counter()
        found = [fitted(base, mine, start) for mine in some.values()]
        seconds = time.perf_counter() - began
    return extrapolated(seconds, len(some), len(people), found)


def extrapolated(seconds: float, some: int, people: int, losses: list[float]) -> dict[str, Any]:
    each = seconds / some
    mean = sum(losses) / len(losses)
    return {"people": some, "seconds": seconds, "seconds of all": each * people, "extrapolated": True, "loss": mean}


def alone(rows: list[dict[str, Any]], start: str, root: str) -> float:
    """A person's training in a process of its own; no rows: only the imports."""
    sys.path.insert(0, root)
    import torch

    torch.set_num_threads(1)
    return fitted(plain_base(), rows, Path(start)) if rows else 0.0


def plain_base() -> Any:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    from ray_lora.bases.load import locate

    logging.set_verbosity_error()
    folder = locate("minilm")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return model, AutoTokenizer.from_pretrained(folder)


def city(folder: Path) -> Path:
    """A city's adapter that everyone begins as, as PEFT saves it; what it has learnt does not change the time."""
    from peft import LoraConfig, get_peft_model

    model, _ = plain_base()
    targets = "all-linear"
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=targets)).save_pretrained(
        folder
    )
    return folder


def fitted(base: Any, rows: list[dict[str, Any]], start: Path) -> float:
    """A person's training by Trainer over PEFT, the best epoch kept; the loss on the later rows."""
    import torch
    from peft import PeftModel
    from transformers import DataCollatorWithPadding, EarlyStoppingCallback, Trainer, TrainingArguments

    from ray_lora.bases.load import pick_dtype

    model, tokenizer = base
    encoded = [
        {**tokenizer(row["text"], truncation=True, max_length=64), "labels": int(row["label"] == "positive")}
        for row in rows
    ]
    first = len(rows) - round(len(rows) * HELD_OUT)
    peft = PeftModel.from_pretrained(model, start, is_trainable=True)
    with tempfile.TemporaryDirectory() as folder:
        given = TrainingArguments(
            output_dir=folder, num_train_epochs=EPOCHS, learning_rate=RATE, per_device_train_batch_size=BATCH,
            eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True,
            metric_for_best_model="loss", report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no",
            bf16=pick_dtype("auto", torch.device("cpu")) == torch.bfloat16,
        )  # fmt: skip
        trainer = Trainer(
            peft, given, train_dataset=encoded[:first], eval_dataset=encoded[first:],
            data_collator=DataCollatorWithPadding(tokenizer), callbacks=[EarlyStoppingCallback(PATIENCE)],
        )  # fmt: skip
        trainer.train()
        loss = float(trainer.evaluate()["eval_loss"])
        peft.save_pretrained(Path(folder) / "adapter")
    peft.unload()
    return loss


def of_people(rows: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(rows).to_pylist():
        found.setdefault(row["shop"], []).append(row)
    return found


# -------------------------------------------------------------------- many adapters in one process


def resident(rows: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Memory, and milliseconds of a step a row, with few adapters in slots and with all."""
    found: dict[str, Any] = {}
    for count in (FEW, asked.people):
        command = [sys.executable, "-c", f"from benchmarks.personal import held; held({count}, {str(rows)!r})"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found[str(count)] = json.loads(done.stdout.splitlines()[-1])
    few, many = (found[str(count)]["ms a row"] for count in (FEW, asked.people))
    return found | {"ms a row, times": many / few}


def held(count: int, rows: str) -> None:
    """Train steps of 32 adapters at a time, of `count` that are all resident; prints what was measured."""
    from ray_lora.bases.load import load_base
    from ray_lora.engine import AdapterEngine
    from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec
    from ray_lora.tasks import build_task
    from ray_lora.tasks.text_classification import TextClassificationSpec
    from ray_lora.training.job import Job
    from ray_lora.training.pack import Pack
    from ray_lora.training.shards import Split, Splits

    base = load_base(BaseSpec(model="minilm"))
    spec = TextClassificationSpec(labels=("negative", "positive"), max_length=64)
    task = build_task(spec, base.processor)
    engine = AdapterEngine(base, slots=count, max_rank=4, train=True)
    engine.reserve_head(task.head)
    encoded = dict(enumerate(task.encode([{"text": row["text"], "label": row["label"]} for row in some(rows)])))
    lora = LoraSpec(r=4, lora_alpha=8, target_modules="all-linear")
    training = TrainingSpec(
        num_train_epochs=100, learning_rate=RATE, per_device_train_batch_size=BATCH, head_start="random"
    )
    pack = Pack(engine, {"rows": Splits(Split(encoded, len(encoded)), None)}, max_rows=64)
    for number in range(count):
        pack.join(Job(f"p{number}", "rows", spec, lora, training))
    members, turn = list(pack.members.values()), 0

    def step() -> None:
        nonlocal turn
        pack.train([members[(turn * FEW + at) % count] for at in range(FEW)])
        turn += 1

    for _ in range(2):
        step()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    seconds = time.perf_counter() - began
    memory = psutil.Process().memory_info().rss / 1e9
    print(json.dumps({"memory in GB": memory, "ms a row": seconds * 1e3 / (STEPS * FEW * BATCH)}))


def some(rows: str) -> list[dict[str, Any]]:
    return pq.read_table(rows).slice(0, 512).to_pylist()


MEASURES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "ours": ours,
    "tasks": tasks,
    "loop": loop,
    "resident": resident,
}


if __name__ == "__main__":
    main()
