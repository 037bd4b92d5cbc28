"""A base in int8 and nf4 beside the same in float32 and bfloat16: memory, time, and what its adapters are worth.

    python -m benchmarks.few_resources [--seeds 3] [--only tweets pictures prompts answers] [--dtypes ...]

    bytes           of the base's numbers, and as a share of float32's; resident_mb: of a process that holds it in an
                    engine of one slot, without what such a process has before
    pass_ms         one pass of so many held-out rows of all adapters (`rows`); one_ms: of one row
    score           on held-out rows of adapters trained on this base, all seeds in one pack: accuracy of tweets
                    (MiniLM) and pictures (EfficientNet-Lite0), word errors of Italian prompts (Whisper tiny.en), exact
                    answers from short texts (SmolLM2)
    served_on       the same of the adapters that were trained on floats, answered on the base in few bits

All on one thread. Tweets: rank 8 on all linear layers, two epochs at 1e-3; the others as their recipes say. What is
known is not measured again; a killed call goes on. A dtype's line says of which processor its milliseconds are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers.utils import logging

from benchmarks.lines import KEPT, LINES, scores, trained
from benchmarks.machine import RESULTS, machine, write
from pipelines.baselines import Data
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import pick_dtype
from ray_lora.bases.quantised import nbytes
from ray_lora.engine import AdapterEngine

TOLD = ("tweets", "pictures", "prompts", "answers")
RUNS = 9
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
    options.add_argument("--only", nargs="*", default=TOLD, choices=TOLD)
    options.add_argument("--dtypes", nargs="*", default=())
    asked = options.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    best = str(pick_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    dtypes = asked.dtypes or list(dict.fromkeys(["float32", best, "int8", "nf4"]))
    path = RESULTS / "few-resources.json"
    lines: dict[str, Any] = json.loads(path.read_text())["lines"] if path.exists() else {}
    for name in asked.only:
        mine = lines.setdefault(name, {})
        for dtype in dtypes:
            if dtype not in mine:
                mine[dtype] = measured(name, dtype, best, range(asked.seeds))
                mine[dtype]["share"] = round(mine[dtype]["bytes"] / mine.get("float32", mine[dtype])["bytes"], 3)
                print(name, mine[dtype], flush=True)
                path = write("few-resources", {"what": __doc__, "best_float": best, "lines": lines})
    print(path)


def measured(name: str, dtype: str, best: str, seeds: Sequence[int]) -> dict[str, Any]:
    line = LINES[name]
    data = line.ready(dtype)
    held = subprocess.run(
        [sys.executable, "-c", HELD, data.recipe.base.model, dtype], capture_output=True, text=True, check=True
    )
    resident = round(int(held.stdout.split()[-1]) / 1024, 1)
    told: dict[str, Any] = {
        "dtype": dtype,
        "processor": machine()["processor"],
        "bytes": nbytes(data.base.backbone),
        "resident_mb": resident,
    }
    adapters = trained(data, KEPT / name / dtype, seeds)
    told["score"] = spread(scores(data, adapters, line.metric))
    if data.base.quantised is not None and (KEPT / name / best).exists():
        told["served_on"] = spread(scores(data, trained(data, KEPT / name / best, seeds), line.metric))
    return told | passes(data, adapters, line.at_once)


def passes(data: Data, adapters: Sequence[Adapter], at_once: int) -> dict[str, Any]:
    engine = AdapterEngine(data.base, slots=4, max_rank=adapters[0].config.r)
    slots = [engine.load(adapters[at % len(adapters)]) for at in range(4)]
    features, task = data.rows("test")[:at_once], data.task
    whole, one = task.collate(features), task.collate(features[:1])
    owners = torch.tensor([slots[row % 4] for row in range(len(features))])
    with torch.inference_mode():
        told = {
            "rows": len(features),
            "pass_ms": best_of(lambda: engine.forward(whole, owners)),
            "one_ms": best_of(lambda: engine.forward(one, owners[:1])),
        }
    engine.close()
    return told


def best_of(run: Callable[[], object]) -> float:
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
