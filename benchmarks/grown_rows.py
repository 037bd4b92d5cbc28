"""New rows of a person while an endpoint serves: seconds from sending them to being answered by what they taught.

    python -m benchmarks.grown_rows [--people 24] [--rows 16]

`ray-lora serve rows=...` and `ray-lora personal --follow` run beside each other as programs of their own, on this
machine. People are shops whose rows are product reviews, every fourth one with turned labels; MiniLM, rank 4. A
client sends one person's rows, waits until that person's training has ended, and asks for an answer. `served` is the
time until that answer, for those whose adapter changed and for all; meanwhile another client asks for the group's
answers all the time, one after the other: `others` is its latency while nothing trains and while something does.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq

from benchmarks.machine import write
from pipelines.rated_texts import prepare

ROOT = Path(__file__).parents[1]
HAD = 48  # rows of a person at the beginning
_FIRST = 2  # people whose times are not counted: the worker loads the base with the first one


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--people", type=int, default=24)
    options.add_argument("--rows", type=int, default=16, help="that are sent of a person at once")
    asked = options.parse_args()
    prepare("data")
    texts = pq.read_table("data/products/train-1024.parquet").to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        root, draw = Path(folder), random.Random(0)
        people = range(asked.people + _FIRST)
        (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for k in people for row in had(texts, k, draw)))
        recipe = [str(ROOT / "examples/personal.yaml"), f"data.train={root / 'rows.jsonl'}", "tracking.uri=null"]
        recipe += [f"store={root / 'store'}", f"output_dir={root / 'runs'}"]
        subprocess.run([*PROGRAM, "personal", *recipe], check=True)
        serve = ["serve", "--store", str(root / "store"), "--port", "0", f"rows={root / 'sent'}", "--json"]
        with subprocess.Popen([*PROGRAM, *serve], stdout=subprocess.PIPE, text=True) as endpoint:
            assert endpoint.stdout is not None
            address = json.loads(endpoint.stdout.readline())["address"]
            follow = [*PROGRAM, "personal", *recipe, "--follow", str(root / "sent")]
            with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as trainer:
                try:
                    found = measure(address, trainer, texts, asked.rows, people, draw)
                finally:
                    trainer.send_signal(signal.SIGINT)
                    endpoint.send_signal(signal.SIGINT)
    print(json.dumps(found, indent=1))
    write("grown_rows", {"what": __doc__, "people": asked.people, "rows": asked.rows, **found})


PROGRAM = [sys.executable, "-m", "ray_lora"]


def had(texts: list[dict[str, Any]], person: int, draw: random.Random) -> list[dict[str, Any]]:
    """A person's first rows."""
    group = "ab"[person % 2]
    return [told(draw.choice(texts), person) | {"city": group, "date": day} for day in range(HAD)]


def told(row: dict[str, Any], person: int) -> dict[str, Any]:
    label = row["label"] if person % 4 else {"positive": "negative", "negative": "positive"}[row["label"]]
    return {"text": row["text"], "label": label, "shop": f"shop {person}"}


def measure(
    address: str,
    trainer: subprocess.Popen[str],
    texts: list[dict[str, Any]],
    count: int,
    people: range,
    draw: random.Random,
) -> dict[str, Any]:
    """Seconds of each person, and milliseconds of the others' requests."""
    assert trainer.stdout is not None
    line = trainer.stdout.readline()
    while "waiting for rows" not in line:
        line = trainer.stdout.readline()
    quiet, busy, training = list[float](), list[float](), threading.Event()
    done = threading.Event()

    def others() -> None:
        with httpx.Client(timeout=60) as client:
            while not done.is_set():
                began, was = time.perf_counter(), training.is_set()
                client.post(f"{address}/v1/predict", json={"model": "shops.group.a", "inputs": "a day like any"})
                took = (time.perf_counter() - began) * 1e3
                (busy if was and training.is_set() else quiet).append(took)
                time.sleep(0.02)

    client, served, changed = httpx.Client(timeout=60), list[float](), list[bool]()
    thread = threading.Thread(target=others)
    thread.start()
    try:
        time.sleep(15)  # what the others get while nothing trains
        for person in people:
            names = {"model": "shops", "person": f"shop {person}", "group": "ab"[person % 2]}
            before = answered(client, address, names)
            rows = [told(draw.choice(texts), person) for _ in range(count)]
            training.set()
            began = time.perf_counter()
            sent = {**names, "rows": [{key: row[key] for key in ("text", "label")} for row in rows]}
            client.post(f"{address}/v1/rows", json=sent).raise_for_status()
            trainer.stdout.readline()  # its line of the table
            after = answered(client, address, names)
            served.append(time.perf_counter() - began)
            changed.append(before != after)
            training.clear()
            print(person, round(served[-1], 2), "changed" if changed[-1] else "as before", flush=True)
    finally:
        done.set()
        thread.join()
    served, changed = served[_FIRST:], changed[_FIRST:]
    return {
        "served seconds, all": {"median": median(served), "most": max(served)},
        "served seconds, changed": {
            "n": sum(changed), "median": median(s for s, c in zip(served, changed, strict=True) if c)
        },
        "others ms, nothing trains": shown(quiet),
        "others ms, while it trains": shown(busy),
    }  # fmt: skip


def shown(values: list[float]) -> dict[str, float]:
    return {"n": len(values), "p50": float(np.percentile(values, 50)), "p99": float(np.percentile(values, 99))}


def answered(client: httpx.Client, address: str, names: dict[str, str]) -> str:
    reply = client.post(f"{address}/v1/predict", json={**names, "inputs": "a bad day"})
    reply.raise_for_status()
    return reply.headers["x-adapter"]


if __name__ == "__main__":
    main()
