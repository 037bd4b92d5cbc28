"""What `ray-lora plan` foresees beside what the run then takes, for a training and two searches of MiniLM.

    python -m benchmarks.plan                            needs data/tweets: python -m pipelines.rated_texts
    python -m benchmarks.plan --only "search of 6"       the others stay as they were measured

Each recipe is planned with probes and then run, one after the other, on a Ray that runs. `seconds` are the run's: of a
training from its start to its end, of a search from the moment its rows are ready to the last trial's end; `costs` what
all packs' workers spent them on; `worker_bytes` the most that one worker held. `error` is foreseen / measured - 1; of a
search that stops trials, that of the nearer end of what was foreseen, 0 between them. `processor_error` is the same of
the workers' processor seconds, which hardly depend on who else uses the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from types import TracebackType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import ray

from benchmarks.machine import RESULTS, write
from ray_lora.recipe import Recipe
from ray_lora.running.probes import Probes, processes_of
from ray_lora.running.trainer import LoraTrainer
from ray_lora.search.foresight import plan_and_foresee
from ray_lora.search.tuner import LoraTuner

RECIPE = "examples/tweets.yaml"
SHORT = ["training.max_steps=24", "training.eval_steps=null"]
RUNS = {
    "training": [*SHORT, "search.space=null"],
    "search of 6": [*SHORT, "search.try_default=false"],
    "search of 12, early stopping": [
        *SHORT,
        "search.space={lora.r: {grid_search: [2, 4, 8]}, "
        "training.learning_rate: {grid_search: [3.0e-4, 1.0e-3, 3.0e-3, 1.0e-2]}}",
        "search.early_stopping=rungs",
        "search.try_default=false",
    ],
}
_EVERY_S = 0.5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=RUNS)
    only = options.parse_args().only
    path = RESULTS / "plan.json"
    found: dict[str, Any] = json.loads(path.read_text())["runs"] if only and path.exists() else {}
    for name in [only] if only else RUNS:
        found[name] = compared(RUNS[name])
        print(name, *(found[name][what] for what in ("error", "processor_error", "memory_error")), flush=True)
        write("plan", {"what": __doc__, "runs": found})
    print(path)


def compared(overrides: list[str]) -> dict[str, Any]:
    """One recipe, planned and run."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.load(RECIPE, [*overrides, f"output_dir={folder}", "tracking.uri=null"])
        before = os.getloadavg()
        began = time.perf_counter()
        with Probes(processes_of(recipe)) as probes:
            plan = plan_and_foresee(recipe, probes)
        told = plan["foreseen"] | {"planning": time.perf_counter() - began}
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        with Memory() as memory:
            seconds, costs = run(recipe)
        ray.shutdown()
    error = error_of(told["seconds"], seconds)
    measured = {"seconds": seconds, "worker_bytes": memory.most, "costs": costs}
    return {
        "foreseen": told,
        "measured": measured,
        "load": {"before": before, "after": os.getloadavg()},
        "error": error,
        "processor_error": error_of(told["processor_seconds"], costs["processor"]),
        "memory_error": round(told["worker_bytes"] / memory.most - 1, 3),
    }


def error_of(foreseen: list[float], measured: float) -> float:
    """By how much the nearer end of what was foreseen is too large; 0 for what lies between both."""
    low, high = foreseen
    return round(min(max(measured, low), high) / measured - 1, 3)


def run(recipe: Recipe) -> tuple[float, dict[str, float]]:
    """Seconds of a run, and what its packs spent them on."""
    began = time.perf_counter()
    if recipe.search.space is None:
        trainer = LoraTrainer(recipe, quiet=True)
        trainer.fit()
        return time.perf_counter() - began, trainer.costs
    tuner = LoraTuner(recipe, quiet=True)
    tuner.fit()
    return tuner.seconds, tuner.costs


class Memory:
    """The most that any worker of a pack holds while it is entered, in bytes."""

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        self.most = max(self.most, process.memory_info().rss)
                except psutil.Error:
                    continue


if __name__ == "__main__":
    main()
