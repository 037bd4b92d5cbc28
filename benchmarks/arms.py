"""Arms of a comparison by rate and seed: what every benchmark of LoRA beside full training keeps, runs and sums up.

    work("benchmarks.segmentation", ["--only", "emoji"], packs, known, keep, processes=2)
    summary(runs)["lora-8"]["of_full"]

A run is known by its arm, rate and seed; each pack of runs is trained in a process of its own, of those that are not
known.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from ray_lora.engine import AdapterEngine
from ray_lora.recipe import LoraSpec

Run = tuple[str, float, int]  # arm, rate, seed
Keep = Callable[[Run, Mapping[str, Any]], None]


def work(
    module: str,
    told: Sequence[str],
    packs: Sequence[Sequence[Run]],
    known: Mapping[str, Any],
    keep: Keep,
    processes: int,
) -> None:
    """Have `module` train what is not known, with `--runs` beside what is `told`; it prints a run and what it found as
    JSON, a line each."""

    def one(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
        command = [sys.executable, "-m", module, *told, "--runs", json.dumps(runs)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
        return [(tuple(run), found) for run, found in lines]

    missing = [[run for run in runs if name_of(run) not in known] for runs in packs]
    with ThreadPoolExecutor(processes) as threads:
        for done in as_completed([threads.submit(one, runs) for runs in missing if runs]):
            for run, found in done.result():
                keep(run, found)


def name_of(run: Run) -> str:
    return " ".join(map(str, run))


def best(runs: Mapping[str, Any], arm: str) -> float:
    """The rate whose validation rows with seed 0 liked it best."""
    tried = {
        key: found["validation"] for key, found in runs.items() if key.startswith(f"{arm} ") and key.endswith(" 0")
    }
    return float(max(tried, key=tried.__getitem__).split()[1])


def summary(runs: Mapping[str, Any]) -> dict[str, Any]:
    """Of each arm at its best rate: the score on test rows, and the share of what full training trains and reaches."""
    found: dict[str, Any] = {}
    for arm in dict.fromkeys(key.split()[0] for key in runs):
        seeds = [key.split()[1:] for key in runs if key.startswith(f"{arm} ")]
        rate = best(runs, arm) if any(seed == "0" for _, seed in seeds) else float(seeds[0][0])
        mine = [one for key, one in runs.items() if key.startswith(f"{arm} ") and float(key.split()[1]) == rate]
        scores = [one["test"] for one in mine]
        found[arm] = {
            "learning_rate": rate, "test": scores, "mean": statistics.mean(scores),
            "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0, "parameters": mine[0]["parameters"],
            "seconds": statistics.mean(one["seconds"] for one in mine),
        }  # fmt: skip
    for one in found.values():
        if "full" in found:
            one["of_full"] = one["mean"] / found["full"]["mean"]
            one["parameters_of_full"] = one["parameters"] / found["full"]["parameters"]
    return found


def of_rank(lora: LoraSpec, rank: int, engine: AdapterEngine) -> LoraSpec:
    """The recipe's pairs at another rank, at most a layer's width, and scaled alike."""
    narrow = {rf".*{re.escape(name)}": layer.shape.width for name, layer in engine.layers.items()}
    narrow = {name: width for name, width in narrow.items() if width < rank}
    alphas = {name: 2 * width for name, width in narrow.items()}
    return lora.model_copy(update={"r": rank, "lora_alpha": 2 * rank, "rank_pattern": narrow, "alpha_pattern": alphas})
