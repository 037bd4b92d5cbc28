"""Trained adapters on the edge, task by task: a graph with them as inputs, merged, and in 8 bits, beside PyTorch.

    python -m benchmarks.export [--rows 200] [--only tweets prompts ...]
    python -m benchmarks.export --programs          # ExecuTorch's, which must be installed, beside what is known

One adapter a task is trained on its real base (`benchmarks.lines`), put into a store and exported three times, in 8
bits where the task has it. Each export compares held-out rows with the engine in float32 and times one of them, ONNX
Runtime and the same merged adapter in PyTorch with one thread each, in one process. What is known is not measured
again.

    bytes           of the graphs, of the adapter's arrays beside them, and both as a share of the merged float graphs'
    largest         difference of outputs; same: share of rows that are answered like PyTorch, of texts whole ones
    score           of the runner's answers on the rows, and PyTorch's; where an answer alone can be scored
    onnx_ms         of one row, of a text with all its `tokens`; pytorch_ms beside it; swap_ms: from an adapter's file
                    to arrays that the graph takes
    peak_mb         the largest memory of a process of its own that answers one row: the runner's, and `predict_ref`'s
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from benchmarks.lines import KEPT, LINES, scores, trained
from benchmarks.machine import RESULTS, machine, write
from pipelines.baselines import Data
from ray_lora.errors import RecipeError
from ray_lora.export.exporting import export_refs
from ray_lora.store import open_store
from ray_lora.tasks.rows import answering, may_have

TOLD = ("tweets", "pictures", "boxes", "masks", "evening", "prompts", "entries")
KINDS: Mapping[str, dict[str, bool]] = {"merged": {"merge": True}, "inputs": {}, "int8": {"int8": True}}
PROGRAMS = ("tweets", "pictures", "boxes", "masks")
LABELLED = ("tweets", "pictures")  # whose answers are compared with a label
HIGHEST = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"  # kB
EDGE = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); from runner import Bundle; "
    "Bundle(sys.argv[1]).answer([json.loads(sys.argv[3])], [sys.argv[2]]); "
)
PYTORCH = (
    "import json, sys, torch; torch.set_num_threads(1); from ray_lora.inference.stored import predict_ref; "
    "predict_ref(sys.argv[2], [json.loads(sys.argv[3])], sys.argv[1]); "
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=200)
    options.add_argument("--only", nargs="*", default=TOLD, choices=TOLD)
    options.add_argument("--programs", action="store_true", help="of tasks that have them, and of nothing else")
    asked = options.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    path = RESULTS / "export.json"
    lines: dict[str, Any] = json.loads(path.read_text())["lines"] if path.exists() else {}
    for name in asked.only:
        line = lines.get(name, {})
        if asked.programs:
            if name not in PROGRAMS or "program" in line:
                continue
            lines[name] = line | {"program": program(name, asked.rows)}
            print(name, lines[name]["program"], flush=True)
        elif "pytorch" in line:
            continue
        else:
            lines[name] = line | measured(name, asked.rows)
        path = write("export", {"what": __doc__, "lines": lines})
    print(path)


def measured(name: str, most: int) -> dict[str, Any]:
    """A line in each of the three ways."""
    line = LINES[name]
    whole = line.ready("float32")
    [adapter] = trained(whole, KEPT / name / "float32", [0])
    data = Data(whole.recipe, line.test, most)
    rows = pq.read_table(line.test).slice(0, most).to_pylist()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        open_store(str(folder / "store")).put(adapter, name)
        pq.write_table(pq.read_table(line.test).slice(0, most), folder / "rows.parquet")
        first = first_row(data, rows[0], folder)
        found: dict[str, Any] = {"processor": machine()["processor"], "rows": len(rows)}
        found["pytorch"] = {
            "score": round(scores(data, [adapter], line.metric)[0], 4),
            "metric": line.metric,
            "peak_mb": peak(PYTORCH, folder / "store", name, first),
        }
        for kind in KINDS:
            try:
                found[kind] = exported(folder, name, kind, data, rows, first)
            except RecipeError as error:  # 8 bits, of a task that has none
                found[kind] = {"refused": str(error)}
                continue
            mine, largest = found[kind], found["merged"]
            mine["share"] = round((mine["bytes"] + mine["adapter_bytes"]) / largest["bytes"], 3)
            print(name, kind, mine, flush=True)
    return found


def program(name: str, most: int) -> dict[str, Any]:
    """A line's adapter in the weights of an ExecuTorch program."""
    line = LINES[name]
    [adapter] = trained(line.ready("float32"), KEPT / name / "float32", [0])
    with tempfile.TemporaryDirectory() as place:
        store, rows = f"{place}/store", f"{place}/rows.parquet"
        open_store(store).put(adapter, name)
        pq.write_table(pq.read_table(line.test).slice(0, most), rows)
        card = export_refs([name], Path(place) / "program", format="executorch", data=rows, store=store)
    return {"processor": machine()["processor"], **card["figures"]["float"]}


def first_row(data: Data, row: dict[str, Any], folder: Path) -> str:
    """What a runner is given of a row, as JSON: a file's name of a picture or a sound."""
    [column] = answering(data.task)
    value = row[column]
    if isinstance(value, bytes):
        (folder / "first").write_bytes(value)
        value = str(folder / "first")
    return json.dumps(value)


def exported(
    folder: Path, name: str, kind: str, data: Data, rows: Sequence[dict[str, Any]], first: str
) -> dict[str, Any]:
    """One export, what its card says, and what its runner's answers score."""
    place = folder / kind
    rows_file, store = str(folder / "rows.parquet"), str(folder / "store")
    figures = export_refs([name], place, data=rows_file, store=store, **KINDS[kind])["figures"]
    told = {**figures["int8" if kind == "int8" else "float"], "adapter_bytes": figures["adapter_bytes"][name]}
    score = answered(place, name, data, rows)
    return told | ({} if score is None else {"score": round(score, 4)}) | {"peak_mb": peak(EDGE, place, name, first)}


def answered(place: Path, name: str, data: Data, rows: Sequence[dict[str, Any]]) -> float | None:
    """The score of the runner's answers; None where those are no labels and no text of their own."""
    if name not in (*LABELLED, "prompts"):
        return None
    from ray_lora.export.edge.runner import Bundle
    from ray_lora.export.edge.writer import Bundle as Writer

    asked = {*answering(data.task), *may_have(data.task)}
    given = [{key: row[key] for key in row if key in asked} for row in rows]
    answers = (Writer if name == "prompts" else Bundle)(place).answer(given, [name] * len(rows))
    if name == "prompts":
        return data.task.score(answers, data.rows("test"))["wer"]
    labels = [(answer[0] if isinstance(answer, list) else answer)["label"] for answer in answers]
    return sum(label == row["label"] for label, row in zip(labels, rows, strict=True)) / len(rows)


def peak(program: str, place: Path, name: str, value: str) -> float:
    """Megabytes of a process of its own at its largest."""
    command = [sys.executable, "-c", program + HIGHEST, str(place), name, value]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(int(done.stdout.split()[-1]) / 1000, 1)


if __name__ == "__main__":
    main()
