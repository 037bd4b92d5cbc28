"""Rows at scale: how long until the first step, what it takes of memory, and what rows from a disk cost.

    python -m benchmarks.rows [first|border|millions|speeds|steps|answers ...]      # all of them, or those named

MiniLM, texts of about 25 tokens with two labels (tweets, each with a number of its own, so that no two are alike).

`first`: `ray-lora train` of 20 steps on 500,000 rows in one parquet file, seconds from the command to the first step:
in pieces with an empty cache, again with what the first run kept, and read on the driver and encoded in the worker
(the `direct` way, which is what was before). `border`: the same for fewer rows. `millions`: the same command on 1 and
10 million rows in 100 files, and the peak of the worker's and the driver's memory: of no file (anonymous), of no other
process (USS), and all (RSS); what is mapped of files the system takes back when it needs room. `speeds`: rows a second
on one thread. `steps`: a training step on rows from files against rows in memory, taken in turns. `answers`: see
`benchmarks/answers.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import RESULTS, write
from ray_lora.data.row_cache import FOLDER

ROOT = Path(__file__).parents[1]
TWEETS = ROOT / "data" / "tweets" / "train.parquet"
STEPS = 20
_DIRECT = "from ray_lora.running import large, sources as s; s.is_large = lambda files: False"
_WHOLE = "from ray_lora.running import large, sources as s; s.is_large = lambda files: True"


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("parts", nargs="*", choices=[[], *PARTS], help="only these")
    asked = options.parse_args().parts or list(PARTS)
    path = RESULTS / "rows.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in asked:
        with tempfile.TemporaryDirectory(prefix="rows-") as folder:
            found[name] = PARTS[name](Path(folder))
        print(name, json.dumps(found[name], indent=1), flush=True)
        write("rows", {"what": __doc__, **{part: found[part] for part in PARTS if part in found}})


# -------------------------------------------------------------------- the whole command


def first(folder: Path) -> dict[str, Any]:
    """Seconds to the first step on 500,000 rows."""
    data = made(folder / "rows", 500_000, 1)
    found = {"rows": 500_000, "file_mb": size_mb(data)}
    for name, setup, cache in (("cold", "", "cache"), ("again", "", "cache"), ("direct", _DIRECT, "direct")):
        found[name] = trained(folder, f"first-{name}", data, setup, cache)
    found["kept_mb"] = size_mb(folder / "cache")
    return found


def border(folder: Path) -> list[dict[str, Any]]:
    """The same for fewer rows, both ways."""
    lines = []
    for rows in (5_000, 20_000, 50_000, 100_000):
        data = made(folder / str(rows), rows, 1)
        line: dict[str, Any] = {"rows": rows}
        for name, setup in (("cold", _WHOLE), ("again", _WHOLE), ("direct", _DIRECT)):
            line[name] = trained(folder, f"{rows}-{name}", data, setup, f"cache-{rows}")["seconds"]
        lines.append(line)
    return lines


def millions(folder: Path) -> list[dict[str, Any]]:
    """Memory on 1 and on 10 million rows in 100 files."""
    lines = []
    for rows in (1_000_000, 10_000_000):
        data = made(folder / str(rows), rows, 100)
        told = {"rows": rows, "files": 100, "file_mb": size_mb(data)}
        for name in ("cold", "again"):
            told[name] = trained(folder, f"{rows}-{name}", data, "", f"cache-{rows}")
        lines.append(told | {"kept_mb": size_mb(folder / f"cache-{rows}")})
        shutil.rmtree(data)
    return lines


def made(folder: Path, rows: int, files: int) -> Path:
    """Rows in parquet files as pyarrow writes them."""
    folder.mkdir(parents=True)
    table = pq.read_table(TWEETS, columns=["text", "label"])
    texts, labels = table.column("text").to_pylist(), table.column("label").to_pylist()
    each = rows // files
    for number in range(files):
        mine = range(number * each, (number + 1) * each)
        pq.write_table(
            pa.table({
                "text": [f"{texts[row % len(texts)]} {row}" for row in mine],
                "label": [labels[row % len(labels)] for row in mine],
            }),
            folder / f"part-{number:03}.parquet",
        )  # fmt: skip
    return folder


def trained(folder: Path, name: str, data: Path, setup: str, cache: str) -> dict[str, Any]:
    """`ray-lora train` of 20 steps: seconds to its first step, and peaks of memory in megabytes."""
    keys = {
        "name": name,
        "data.train": data,
        "training.max_steps": STEPS,
        "training.logging_steps": 1,
        "tracking.uri": "null",
        "output_dir": folder / "runs",
        "store": folder / "store",
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text("base: {model: minilm}\n")
    command = ["train", str(recipe), *(f"{key}={value}" for key, value in keys.items())]
    program = f"import sys; {setup or 'pass'}; from ray_lora.cli import main; sys.exit(main({command!r}))"
    environment = os.environ | {FOLDER: str(folder / cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.time()
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=folder)
    peaks = peaks_of(process)
    if process.returncode:
        sys.exit(f"{name} failed with {process.returncode}")
    history = (folder / "runs" / name / "jobs" / name / "history.jsonl").read_text().splitlines()
    times = [json.loads(line)["time"] for line in history]
    return {"seconds": round(times[0] - began, 1), "steps_a_second": round(STEPS / (times[-1] - times[0]), 1), **peaks}


def peaks_of(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Peaks of memory of the driver, the worker and encoders until the process ends, looked at once a second."""
    peaks: dict[str, int] = {}
    while process.poll() is None:
        for pid, who in [(process.pid, "driver"), *workers(process.pid)]:
            for kind, value in memory_of(pid).items():
                key = f"{who}_{kind}_mb"
                peaks[key] = max(peaks.get(key, 0), value >> 10)
        time.sleep(1)
    return peaks


def workers(pid: int) -> list[tuple[int, str]]:
    """The processes below one that train or encode."""
    found = []
    try:
        for one in psutil.Process(pid).children(recursive=True):
            name = one.name()
            kind = "worker" if "RayTrainWorker" in name else "encoder" if "Map(" in name else None
            found += [(one.pid, kind)] if kind else []
    except psutil.Error:
        pass
    return found


def memory_of(pid: int) -> dict[str, int]:
    """Kilobytes of a process: of no file, of no other process, all."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return {}
    told = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    own = told["Private_Clean"] + told["Private_Dirty"]
    return {"anonymous": told["Anonymous"], "uss": own, "rss": told["Rss"]}


def size_mb(folder: Path) -> float:
    """Of all files below a folder."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


# -------------------------------------------------------------------- in this process


def speeds(folder: Path) -> dict[str, Any]:
    """Rows a second on one thread: what is done to each of 32,768 rows, and what the tokenizer alone does."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    from ray_lora.bases.load import describe_base
    from ray_lora.data.check import check_table, learn
    from ray_lora.data.encoded import EncodedFile, write_rows
    from ray_lora.data.files import find_files
    from ray_lora.data.piece_types import read_piece
    from ray_lora.data.pieces import cut
    from ray_lora.recipe import BaseSpec, TaskSpec
    from ray_lora.tasks import build_task, task_of

    rows = 32_768
    files = find_files(str(made(folder / "rows", rows, 1)))
    spec = TaskSpec.model_validate({})
    kind = task_of(spec)
    found: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            value = call()
            best = min(best, time.perf_counter() - began)
        found[name] = round(rows / best)
        return value

    table = timed("read", lambda: read_piece(cut(files)[0], kind.columns, kind.columns))
    spec = timed("learn", lambda: learn(kind, spec, [table]))
    timed("check", lambda: check_table(kind, spec, table, "rows"))
    task = build_task(spec, describe_base(BaseSpec()).processor)
    texts = table.column("text").to_pylist()
    timed("tokenizer alone", lambda: task._tokenizer.backend_tokenizer.encode_batch(texts))  # type: ignore[attr-defined]
    features = timed("encode", lambda: task.encode(table.to_pylist()))
    sized = [(row, task.size(row)) for row in features]
    timed("write", lambda: write_rows(folder / "rows.arrow", sized))
    kept = EncodedFile(folder / "rows.arrow")
    timed("take from the file", lambda: [kept[row] for row in range(rows)])
    return found


def steps(folder: Path) -> dict[str, Any]:
    """Seconds of a step of 4 adapters on 16 rows each, from files (not in memory) and from memory, in turns."""
    import torch

    from ray_lora.bases.load import load_base
    from ray_lora.data.encoded import EncodedFile, write_rows
    from ray_lora.data.stored_rows import StoredRows, Stretch
    from ray_lora.engine import AdapterEngine
    from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec
    from ray_lora.tasks import build_task
    from ray_lora.tasks.text_classification import TextClassificationSpec
    from ray_lora.training.job import Job
    from ray_lora.training.pack import Pack, Split, Splits

    torch.set_num_threads(1)
    rows, k = 200_000, 4
    base = load_base(BaseSpec())
    spec = TextClassificationSpec(labels=("negative", "positive"))
    task = build_task(spec, base.processor)
    features = task.encode(pq.read_table(made(folder / "rows", rows, 1)).to_pylist())
    path = folder / "rows.arrow"
    write_rows(path, [(row, task.size(row)) for row in features])
    sources = {
        "memory": Split(dict(enumerate(features)), rows),
        "disk": Split(StoredRows([Stretch(0, rows, lambda: EncodedFile(path))]), rows),
    }
    packs = {}
    for name, split in sources.items():
        packs[name] = Pack(
            AdapterEngine(base if name == "memory" else load_base(BaseSpec()), slots=k, train=True),
            {"rows": Splits(split)},
        )
        for number in range(k):
            packs[name].join(Job(f"a{number}", "rows", spec, LoraSpec(), TrainingSpec(seed=number)))
    os.posix_fadvise(os.open(path, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    spent: dict[str, list[float]] = {name: [] for name in packs}
    for turn in range(60):
        for name in sorted(packs, reverse=bool(turn % 2)):
            began = time.perf_counter()
            packs[name].step()
            spent[name].append(time.perf_counter() - began)
    medians = {name: sorted(times[10:])[len(times[10:]) // 2] for name, times in spent.items()}
    sums = {name: sum(times[10:]) for name, times in spent.items()}
    return {"adapters": k, "batch": 16, "median_s": medians, "disk / memory": sums["disk"] / sums["memory"]}


def answers(folder: Path) -> dict[str, Any]:
    """Tables of rows that name their adapters."""
    from benchmarks.answers import measure

    return measure()


PARTS: dict[str, Callable[[Path], Any]] = {
    "speeds": speeds, "steps": steps, "first": first, "border": border, "answers": answers, "millions": millions,
}  # fmt: skip

if __name__ == "__main__":
    main()
