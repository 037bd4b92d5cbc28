"""What each part of a request costs: HTTP, finding the adapter, tokenisation, waiting for a batch, forward, decoding.

    python -m benchmarks.request [--requests 400]

`ray-lora serve` with one replica behind HAProxy, MiniLM in its best dtype, 64 adapters of rank 8 in their slots, one
short tweet a request.

    alone       one client that waits for each answer: milliseconds at the median. `http` is a GET of /health,
                `queue` and `compute` are what the replica says in `server-timing`, `rest` is what is left: the body,
                the adapter's entry in the store, its lease, tokenisation, the answer.
    processor   milliseconds of one core for a row, in passes of 1, 8, 16 and 32 rows of as many adapters
    loaded      wrk with 32 connections: requests/s, rows in a batch, and milliseconds of processor time that all the
                endpoint's processes used for a request
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.endpoint import NAMES, Server, load, short_texts, write_store
from benchmarks.machine import write
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import forward
from ray_lora.recipe import BaseSpec
from ray_lora.tasks import build_task
from ray_lora.tasks.text_classification import TextClassificationSpec

ROWS = (1, 8, 16, 32)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=400)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        write_store(store, NAMES[:64])
        with Server("ours", store) as server:
            load(server, NAMES[:64], 5)
            one, many = alone(server, asked.requests), loaded(server)
        result = {"alone": one, "processor": {f"{rows} rows": processor(store, rows) for rows in ROWS}, "loaded": many}
    for name, part in result.items():
        print(name, part)
    print(write("request", {"what": __doc__, **result}))


def alone(server: Server, requests: int) -> dict[str, float]:
    """Medians of one client's requests, milliseconds."""
    texts = short_texts()
    told: dict[str, list[float]] = {"http": [], "whole": [], "queue": [], "compute": []}
    with httpx.Client(base_url=server.address) as client:
        for number in range(requests):
            began = time.perf_counter()
            client.get("/health").raise_for_status()
            told["http"].append(1000 * (time.perf_counter() - began))
            body = {"model": NAMES[number % 64], "inputs": texts[number % len(texts)]}
            began = time.perf_counter()
            reply = client.post("/v1/predict", json=body).raise_for_status()
            told["whole"].append(1000 * (time.perf_counter() - began))
            for stage, value in re.findall(r"(\w+);dur=([\d.]+)", reply.headers["server-timing"]):
                told[stage].append(float(value))
    median = {name: statistics.median(values) for name, values in told.items()}
    rest = median["whole"] - median["http"] - median["queue"] - median["compute"]
    return {name: round(value, 2) for name, value in (median | {"rest": rest}).items()}


def loaded(server: Server) -> dict[str, float]:
    """Under 32 connections: throughput, rows in a batch, processor time for a request."""
    before, used = httpx.get(f"{server.address}/v1/status").json()["batches"], server.processor_seconds()
    measured = load(server, NAMES[:64], 15)
    after, spent = httpx.get(f"{server.address}/v1/status").json()["batches"], server.processor_seconds()
    batches, rows = (after[name] - before[name] for name in ("batches", "rows"))
    return {
        "rps": measured["rps"],
        "p50_ms": measured["p50_ms"],
        "rows in a batch": round(rows / batches, 1),
        "compute ms/row": round(1000 * (after["seconds"] - before["seconds"]) / rows, 2),
        "processor ms/request": round(1000 * (spent - used) / rows, 2),
    }


def processor(store: Path, rows: int) -> dict[str, float]:
    """Milliseconds for each row of one thread in a pass of `rows` rows of as many adapters."""
    torch.set_num_threads(1)
    base = load_base(BaseSpec(model="minilm"))
    engine = AdapterEngine(base, slots=64, max_rank=64)
    slots = [engine.load(Adapter.load(store / name)) for name in NAMES[:64]]
    task = build_task(TextClassificationSpec(labels=("LABEL_0", "LABEL_1")), base.processor)
    texts = short_texts()[:rows]
    chosen = [slots[(7 * number) % 64] for number in range(rows)]  # not side by side in the stacks
    features = task.encode([{"text": text} for text in texts])
    tasks = dict.fromkeys(chosen, task)

    def one_pass() -> list[Any]:
        with torch.inference_mode():
            return list(forward(engine, tasks, features, chosen, sorted(range(rows), key=chosen.__getitem__)))

    ((_, order, outputs),) = one_pass()
    ordered = [features[row] for row in order]
    costs = {
        "tokenisation": timed(lambda: [task.encode([{"text": text}]) for text in texts]),
        "forward": timed(one_pass),
        "decoding": timed(lambda: task.decode(outputs, ordered, {})),
    }
    engine.close()
    return {name: round(value / rows, 3) for name, value in costs.items()}


def timed(call: Callable[[], Any], rounds: int = 20) -> float:
    """Milliseconds at the median."""
    for _ in range(3):
        call()
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


if __name__ == "__main__":
    main()
