"""A sentiment adapter of MiniLM on the edge: one graph with it as inputs, merged, and in 8 bits, beside PyTorch.

    python -m benchmarks.export [--steps 60] [--rows 200]

An adapter of rank 8 on all linear layers is trained with PEFT on rated tweets, put into a store and exported three
times. Each export compares rows of the test split with the engine in float32 and times one row, ONNX Runtime and the
same merged adapter in PyTorch with one thread each, in one process.

    bytes           of the graph, of the adapter's arrays beside it, and both as a share of the float graph's
    largest         difference of outputs; same: share of rows that are answered like PyTorch
    accuracy        of the runner's answers on the rows, and PyTorch's
    onnx_ms         of one row; pytorch_ms beside it; swap_ms: from an adapter's file to arrays that the graph takes
    peak_mb         the largest memory of a process of its own that answers one row: the runner's, and `predict_ref`'s
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers
from peft import LoraConfig, get_peft_model

from benchmarks.machine import write
from pipelines.rated_texts import prepare
from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.packaged import fetch
from ray_lora.export.edge.runner import Bundle
from ray_lora.export.exporting import export_refs
from ray_lora.inference.stored import alone
from ray_lora.store import open_store
from ray_lora.tasks.text_classification import TextClassificationSpec

LABELS = ("negative", "positive")
KINDS = {"inputs": {}, "merged": {"merge": True}, "int8": {"int8": True}}
HIGHEST = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"  # kB
EDGE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from runner import Bundle; "
    "Bundle(sys.argv[1]).answer(['so happy with my new phone'], ['tweets']); "
)
PYTORCH = (
    "import sys; from ray_lora.inference.stored import predict_ref; "
    "predict_ref('tweets', ['so happy with my new phone'], sys.argv[1]); "
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--rows", type=int, default=200)
    asked = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder / "data")
        rows = _rows(folder, "test", asked.rows)
        pq.write_table(pq.read_table(folder / "data/tweets/test.parquet").slice(0, asked.rows), folder / "rows.parquet")
        adapter = train(folder, asked.steps)
        open_store(str(folder / "store")).put(adapter, "tweets")
        plain = accuracy(in_pytorch(adapter, [row["text"] for row in rows]), rows)
        found = {kind: measured(folder, kind, rows) for kind in KINDS}
        largest = peak(PYTORCH, folder / "store")
    whole = found["inputs"]["bytes"]
    for part in found.values():
        part["share"] = round((part["bytes"] + part["adapter_bytes"]) / whole, 3)
        print(part)
    print(
        write(
            "export", {"what": __doc__, "rows": len(rows), "pytorch": {"accuracy": plain, "peak_mb": largest}, **found}
        )
    )


def _rows(folder: Path, split: str, count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / f"data/tweets/{split}.parquet").slice(0, count).to_pylist()
    return rows


def train(folder: Path, steps: int) -> Adapter:
    """PEFT's adapter after so many steps of 16 rows, with what this library keeps of it."""
    base = fetch("minilm")
    rows = _rows(folder, "train-1024", 1024)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="SEQ_CLS"))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    order = torch.randperm(len(rows)).repeat(1 + 16 * steps // len(rows))
    for step in range(steps):
        mine = [rows[number] for number in order[16 * step : 16 * step + 16].tolist()]
        batch = tokenizer(
            [row["text"] for row in mine], padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        truth = torch.tensor([LABELS.index(row["label"]) for row in mine])
        model(**batch, labels=truth).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "peft")
    spec = TextClassificationSpec(labels=LABELS, max_length=64)
    adapter = Adapter.load(folder / "peft")
    return Adapter(
        adapter.config,
        adapter.layers,
        adapter.head,
        Card(task=spec, base="minilm"),
        adapter.peft_type,
        adapter.head_modules,
    )


def in_pytorch(adapter: Adapter, texts: Sequence[str]) -> list[Any]:
    """The engine's answers, in float32."""
    from ray_lora.inference.predict import predict

    engine, slot, task = alone(adapter, "tweets", dtype="float32")
    features = task.encode([{"text": text} for text in texts])
    found = predict(engine, {slot: task}, features, [slot] * len(texts))
    engine.close()
    return found


def accuracy(answers: Sequence[Any], rows: Sequence[dict[str, Any]]) -> float:
    right = sum(answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=True))
    return round(right / len(rows), 4)


def measured(folder: Path, kind: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One export and what its card says."""
    place = folder / kind
    given = {"data": str(folder / "rows.parquet"), "store": str(folder / "store"), **KINDS[kind]}
    figures = export_refs(["tweets"], place, **given)["figures"]
    mine = figures["int8" if kind == "int8" else "float"]
    answers = Bundle(place).answer([row["text"] for row in rows], ["tweets"] * len(rows))
    return {
        "kind": kind,
        **mine,
        "adapter_bytes": figures["adapter_bytes"]["tweets"],
        "accuracy": accuracy(answers, rows),
        "peak_mb": peak(EDGE, place),
    }


def peak(program: str, place: Path) -> float:
    """Megabytes of a process of its own at its largest."""
    done = subprocess.run([sys.executable, "-c", program + HIGHEST, place], capture_output=True, text=True, check=True)
    return round(int(done.stdout.split()[-1]) / 1000, 1)


if __name__ == "__main__":
    main()
