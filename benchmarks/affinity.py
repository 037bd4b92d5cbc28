"""Two replicas, more adapters than slots: HAProxy's least connections against its hash of the adapter's name.

`python -m benchmarks.affinity` needs `wrk` and writes results/affinity.json: requests/s, latency, misses of the slots.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.endpoint import NAMES, write_store
from benchmarks.machine import write
from ray_lora.serving import AppArgs
from ray_lora.serving.cluster.ingress import SETTINGS, free_port

ADAPTERS, SLOTS, CONNECTIONS, SECONDS = 64, 20, 32, 20
BALANCE = {"least connections": "leastconn", "by adapter": SETTINGS["RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"]}
TRAFFIC = {"uniform": "math.random(64)", "zipf": "zipf()"}
LUA = """
local sum, cumulated = 0, {}
for i = 1, 64 do sum = sum + 1 / i; cumulated[i] = sum end
function zipf()
  local drawn = math.random() * sum
  for i = 1, 64 do if drawn <= cumulated[i] then return i end end
end
wrk.headers["content-type"] = "application/json"
function request()
  local body = string.format('{"model": "a%%04d", "inputs": "what a lovely day to go to the cinema"}', %s - 1)
  return wrk.format("POST", "/v1/predict", nil, body)
end
"""


def measure(store: Path, balance: str, draw: str) -> dict[str, Any]:
    """One endpoint under one kind of traffic."""
    metrics = free_port()
    args = AppArgs(
        store=str(store), base="minilm", slots=SLOTS, max_rank=8, num_replicas=2, port=0, metrics_port=metrics
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % draw)
        script.flush()
        served = subprocess.Popen(
            [sys.executable, "-m", "tests.ray.served", args.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": balance, "OMP_NUM_THREADS": "1"},
        )
        assert served.stdout is not None
        address = served.stdout.readline().strip()
        for seconds in (5, SECONDS):  # the first warms up
            before = counters(metrics)
            command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", script.name, address]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        after = counters(metrics)
        served.communicate()
    counted = {name: after[name] - before.get(name, 0.0) for name in after}
    asked = counted["hits"] + counted["misses"]
    return {
        "requests_per_s": float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0]),
        "p50": re.findall(r"^\s+50%\s+(\S+)", said, re.M)[0],
        "p99": re.findall(r"^\s+99%\s+(\S+)", said, re.M)[0],
        "errors": re.findall(r"Non-2xx or 3xx responses: (\d+)", said),
        "missed_slots": round(counted["misses"] / asked, 4),
    }


def counters(port: int) -> dict[str, float]:
    """Sums over replicas; waits until what was counted stands on the page."""
    time.sleep(15)
    page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return {
        name: sum(float(value) for value in re.findall(rf"^ray_lora_cache_{name}_total\{{.*\}} (\S+)$", page, re.M))
        for name in ("hits", "misses")
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), NAMES[:ADAPTERS])
        results = {
            traffic: {name: measure(Path(folder), balance, draw) for name, balance in BALANCE.items()}
            for traffic, draw in TRAFFIC.items()
        }
    settings = {"adapters": ADAPTERS, "slots": SLOTS, "replicas": 2, "connections": CONNECTIONS, "seconds": SECONDS}
    print(write("affinity", {"settings": settings, "results": results}).read_text())
