"""What a run costs beside its training: from the command to the first step, from the last step to the prompt.

    python -m benchmarks.startup [--rows 240] [--trials 8] [--repeat 3]

Of `ray-lora train` and `ray-lora search` on a recipe of few short texts, with MLflow in a file:

    first_step_s    from the command to the first step that any job has logged
    training_s      from there to the last one
    end_s           from the last step that was logged (its evaluation, the adapter, the store and MLflow are still to
                    come) to the prompt
    said            what was printed to standard error when, the first lines: where the time goes

`cold`: the command starts Ray. `warm`: it joins one that runs. `plan_s`: of `ray-lora plan`, from command to prompt;
`help_s`: of `ray-lora --help`, which loads next to nothing. `ctrl_c_s`: from Ctrl-C, sent after the first step, to the
prompt. Medians of `--repeat` runs; the spread is beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.machine import write

WORDS = ("plain quiet early late warm cold short long north south " * 2 + "good lovely fine bad awful poor").split()
RAY = """
import sys
import ray

print(ray.init(include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1]).address_info["address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # the commands have no token of that Ray's
SAID = 12  # lines of standard error that are kept


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=240)
    options.add_argument("--trials", type=int, default=8)
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--model", default="minilm")
    options.add_argument("--name", default="startup")
    options.add_argument("--only", choices=("commands", "cold", "warm"), help="one part of it")
    asked = options.parse_args()
    found: dict[str, Any] = {"what": __doc__, **vars(asked), "load_before": os.getloadavg()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recipe = prepare(folder, asked.rows, asked.trials, asked.model)
        alone = {"RAY_ADDRESS": "local", "RAY_TMPDIR": place}
        run(["plan", str(recipe)], folder, alone)  # the base is fetched and its parts are in the disk's cache
        if asked.only in (None, "commands"):
            found["help_s"] = spread([run(["--help"], folder, alone)["seconds"] for _ in range(asked.repeat)])
            found["plan_s"] = spread(
                [run(["plan", str(recipe)], folder, alone)["seconds"] for _ in range(asked.repeat)]
            )
        if asked.only in (None, "cold"):
            found["cold"] = measured(recipe, folder, alone, asked.repeat)
        if asked.only in (None, "warm"):
            with running_ray(place) as address:
                found["warm"] = measured(recipe, folder, {**alone, "RAY_ADDRESS": address}, asked.repeat)
    print(write(asked.name, found))


def prepare(folder: Path, rows: int, trials: int, model: str) -> Path:
    """A recipe and its rows: texts of six words, which say by one of them what they are."""
    draw = random.Random(0)
    for split, count in (("train", rows), ("validation", rows // 4)):
        lines = ["text,label"]
        for _ in range(count):
            label = draw.choice(["no", "yes"])
            words = [*draw.choices(WORDS[:10], k=5), draw.choice(WORDS[-6:-3] if label == "yes" else WORDS[-3:])]
            lines.append(f"{' '.join(draw.sample(words, k=6))},{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    recipe: dict[str, Any] = {
        "name": "mails",
        "base": {"model": model},
        "task": {"labels": ["no", "yes"], "max_length": 32},
        "data": {split: str(folder / f"{split}.csv") for split in ("train", "validation")},
        "training": {"num_train_epochs": 2, "logging_steps": 1},
        "search": {
            "space": {"lora.r": {"choice": [2, 4, 8]}, "training.learning_rate": {"loguniform": [1e-4, 1e-2]}},
            "num_samples": trials,
        },
    }
    (folder / "mails.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "mails.yaml"


def measured(recipe: Path, folder: Path, environment: Mapping[str, str], repeat: int) -> dict[str, Any]:
    """`train` and `search` to their ends, and `train` ended by Ctrl-C, so often each."""
    found: dict[str, Any] = {}
    for command in ("train", "search"):
        found[command] = summed([timed(command, recipe, folder, environment) for _ in range(repeat)])
    return found | {"ctrl_c_s": spread([interrupted(recipe, folder, environment) for _ in range(repeat)])}


def timed(command: str, recipe: Path, folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """One run, parted by the times of the steps that its jobs have logged."""
    out = fresh(folder)
    told = run([command, str(recipe), *places(out)], folder, environment)
    if told["code"] != 0:
        raise SystemExit(f"{command} ended with {told['code']}: {told['said'][-3:]}")
    times = sorted(step_times(out))
    return {
        "seconds": told["seconds"],
        "first_step_s": times[0] - told["began"],
        "training_s": times[-1] - times[0],
        "end_s": told["began"] + told["seconds"] - times[-1],
        "said": told["said"][:SAID],
    }


def interrupted(recipe: Path, folder: Path, environment: Mapping[str, str]) -> float:
    """Seconds from Ctrl-C, sent once steps are made, to the prompt."""
    out = fresh(folder)
    long = ["training.num_train_epochs=1000"]
    process = start(["train", str(recipe), *places(out), *long], folder, environment, subprocess.DEVNULL)
    while process.poll() is None and not any(True for _ in step_times(out)):
        time.sleep(0.05)
    at = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait()
    return time.monotonic() - at


def run(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """A command to its end: when it began, how long it took, what it said when."""
    began, at = time.time(), time.monotonic()
    process = start(words, folder, environment, subprocess.PIPE)
    said: list[tuple[float, str]] = []

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append((round(time.monotonic() - at, 2), line.rstrip()[:200]))

    listener = threading.Thread(target=listen)
    listener.start()
    code = process.wait()
    seconds = time.monotonic() - at
    listener.join()
    return {"began": began, "seconds": seconds, "code": code, "said": said}


def start(words: Sequence[str], folder: Path, environment: Mapping[str, str], errors: int) -> subprocess.Popen[str]:
    known = {"OMP_NUM_THREADS": "1", **QUIET, **os.environ, **environment}
    command = [sys.executable, "-m", "ray_lora", *words]
    heard = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has what runs in the background ignore it
    try:
        return subprocess.Popen(command, cwd=folder, env=known, stdout=subprocess.DEVNULL, stderr=errors, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)


def places(out: Path) -> list[str]:
    return [f"output_dir={out / 'runs'}", f"store={out / 'store'}", f"tracking.uri=sqlite:///{out / 'mlflow.db'}"]


def fresh(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder, prefix="run-"))


def step_times(out: Path) -> Iterator[float]:
    """When each logged step was, in seconds since the epoch."""
    for file in out.rglob("history.jsonl"):
        for line in file.read_text().splitlines():
            try:
                yield float(json.loads(line)["time"])
            except ValueError:
                continue  # it is being written


@contextmanager
def running_ray(place: str) -> Iterator[str]:
    """A Ray of this program's own; its address. It ends with its input."""
    with subprocess.Popen(
        [sys.executable, "-c", RAY, f"{place}/w"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**QUIET, **os.environ},
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise SystemExit("Ray did not start")
        yield address


def summed(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures = [name for name in runs[0] if name != "said"]
    return {name: spread([one[name] for one in runs]) for name in figures} | {"said": runs[-1]["said"]}


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(seconds), 2), "least": round(min(seconds), 2), "most": round(max(seconds), 2)}


if __name__ == "__main__":
    main()
