"""A base in int8 and nf4 beside the same in float32 and bfloat16: memory, time, and what its adapters are worth.

    python -m benchmarks.few_bits [--seeds 3]

    bytes           of the base's numbers, and as a share of float32's; resident_mb: of a process that holds it in an
                    engine of one slot, without what such a process has before
    pass_ms         one pass of 32 tweets of four adapters; one_ms: of one tweet
    accuracy        on held-out tweets of adapters trained on this base, all seeds in one pack
    served_on       the same of the adapters that were trained on floats, answered on the base in few bits

All on one thread. Adapters are of rank 8 on all linear layers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks.machine import write
from pipelines import rated_texts
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base, pick_dtype
from ray_lora.bases.quantised import nbytes
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec, LoraSpec, TaskSpec, TrainingSpec
from ray_lora.tasks import Features, build_task
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Split, Splits

TWEETS = TextClassificationSpec(labels=("negative", "positive"), max_length=64)
LORA = LoraSpec(r=8, lora_alpha=16)
RUNS = 15
HELD = (
    "import sys, torch; torch.set_num_threads(1)\n"
    "from ray_lora.bases.load import load_base\nfrom ray_lora.engine import AdapterEngine\n"
    "from ray_lora.recipe import BaseSpec\n"
    "def now(): return int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')))\n"
    "before = now()\nbase = load_base(BaseSpec(model=sys.argv[1], dtype=sys.argv[2]))\n"
    "engine = AdapterEngine(base, slots=1, max_rank=8)\nprint(now() - before)\n"
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3)
    asked = options.parse_args()
    torch.set_num_threads(1)
    rated_texts.prepare("data")
    best = str(pick_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    dtypes = list(dict.fromkeys(["float32", best, "int8", "nf4"]))
    found: dict[str, Any] = {"best_float": best, "minilm": texts(dtypes, best, range(asked.seeds))}
    print(write("few-bits", {"what": __doc__, **found}))


def texts(dtypes: Sequence[str], best: str, seeds: Sequence[int]) -> dict[str, Any]:
    """The encoder, by dtype."""
    rows = {
        split: pq.read_table(f"data/tweets/{name}.parquet").to_pylist()
        for split, name in (("train", "train-1024"), ("validation", "validation-512"), ("test", "test"))
    }
    jobs = [(f"tweets-{seed}", TrainingSpec(num_train_epochs=2, learning_rate=1e-3, seed=seed)) for seed in seeds]
    found: dict[str, Any] = {}
    floats: list[Adapter] = []
    for dtype in dtypes:
        base, told = opened("minilm", dtype)
        adapters = trained(base, TWEETS, rows, jobs)
        floats = adapters if dtype == best else floats
        told["accuracy"] = spread(scores(base, TWEETS, adapters, rows["test"], "accuracy"))
        if base.quantised is not None:
            told["served_on"] = spread(scores(base, TWEETS, floats, rows["test"], "accuracy"))
        told |= passes(base, adapters, rows["test"][:32])
        found[dtype] = compared(told, found)
    return found


def compared(told: dict[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    whole = found["float32"]["bytes"] if found else told["bytes"]
    told["share"] = round(told["bytes"] / whole, 3)
    print(told, flush=True)
    return told


def opened(model: str, dtype: str) -> tuple[Base, dict[str, Any]]:
    base = load_base(BaseSpec.model_validate({"model": model, "dtype": dtype}))
    held = subprocess.run([sys.executable, "-c", HELD, model, dtype], capture_output=True, text=True, check=True)
    resident = round(int(held.stdout.split()[-1]) / 1024, 1)
    return base, {"dtype": dtype, "bytes": nbytes(base.backbone), "resident_mb": resident}


def trained(
    base: Base, spec: TaskSpec, rows: Mapping[str, Sequence[Any]], jobs: Sequence[tuple[str, TrainingSpec]]
) -> list[Adapter]:
    """One pack of all jobs."""
    engine = AdapterEngine(base, slots=len(jobs), max_rank=LORA.r, train=True)
    task = build_task(spec, base.processor)
    encoded = {split: dict(enumerate(task.encode(rows[split]))) for split in ("train", "validation")}
    splits = Splits(*(Split(encoded[split], len(encoded[split])) for split in ("train", "validation")))
    with tempfile.TemporaryDirectory() as folder:
        pack = Pack(engine, {"rows": splits}, output=Path(folder), max_rows=64)
        for name, training in jobs:
            pack.join(Job(name, "rows", spec, LORA, training))
        while pack.members:
            pack.step()
        engine.close()
        return [Adapter.load(Path(folder) / name / "adapter") for name, _ in jobs]


def scores(base: Base, spec: TaskSpec, adapters: Sequence[Adapter], rows: Sequence[Any], metric: str) -> list[float]:
    """Of each adapter on all rows, in mixed passes."""
    engine = AdapterEngine(base, slots=len(adapters), max_rank=LORA.r)
    task = build_task(spec, base.processor)
    features = task.encode(rows)
    slots = [engine.load(adapter) for adapter in adapters]
    mixed: list[Features] = [row for row in features for _ in slots]
    with torch.inference_mode():
        answers = predict(engine, dict.fromkeys(slots, task), mixed, slots * len(features))
    engine.close()
    return [task.score(answers[at :: len(slots)], features)[metric] for at in range(len(slots))]


def passes(base: Base, adapters: Sequence[Adapter], rows: Sequence[Any]) -> dict[str, float]:
    engine = AdapterEngine(base, slots=4, max_rank=LORA.r)
    task = build_task(TWEETS, base.processor)
    slots = [engine.load(adapters[at % len(adapters)]) for at in range(4)]
    features = task.encode(rows)
    whole, one = task.collate(features), task.collate(features[:1])
    owners = torch.tensor([slots[row % 4] for row in range(len(rows))])
    with torch.inference_mode():
        told = {
            "pass_ms": best_of(lambda: engine.forward(whole, owners)),
            "one_ms": best_of(lambda: engine.forward(one, owners[:1])),
        }
    engine.close()
    return told


def best_of(run: Any) -> float:
    """Milliseconds of the fastest of some runs."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return round(1e3 * min(times), 2)


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": round(fmean(values), 4),
        "spread": round(stdev(values), 4) if len(values) > 1 else None,
        "seeds": [round(value, 4) for value in values],
    }


if __name__ == "__main__":
    main()
