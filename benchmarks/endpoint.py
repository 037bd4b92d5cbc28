"""Requests a second of the endpoint, beside what Ray's documentation leads to and what an expert builds.

    python -m benchmarks.endpoint [--seconds 15]        needs: apt install wrk

MiniLM on two cores, short tweets, adapters of rank 8 on all linear layers, one row a request. Load: wrk with 32
connections, adapters drawn uniformly from 64 or by Zipf's law; then 8 connections that pause, so that all sides are
offered the same. Each side runs alone:

    plain           @serve.multiplexed + PEFT's set_adapter, a replica a core, Serve's own proxy
    plain-haproxy   the same behind HAProxy
    expert          HAProxy, own batcher, PEFT's adapter_names, all adapters resident, a replica a core
    ours            `ray-lora serve`, one replica (float32 and bfloat16), and a replica a core

`flat` is one adapter against 64 of 1,000 in the store; `cold` the first answer of an adapter that is stored but not
resident, less its second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.machine import write

SIDES = ("ours", "ours-float32", "ours-2", "expert", "plain-haproxy", "plain")
NAMES = [f"a{number:04d}" for number in range(1000)]
OFFERED = 12  # requests a second of each of the 8 connections that pause


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=int, default=15)
    options.add_argument("--sides", default=",".join(SIDES))
    options.add_argument("--serve", nargs=2, metavar=("SIDE", "STORE"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.serve:
        serve(*asked.serve)
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "64", Path(folder) / "1000"
        write_store(few, NAMES[:64])
        for side in asked.sides.split(","):
            with Server(side, few) as server:
                result[side] = measure(server, asked.seconds)
            print(side, json.dumps(result[side]), flush=True)
        write_store(many, NAMES)
        with Server("ours", many) as server:
            result["flat"], result["cold"] = flat(server, asked.seconds), cold(server)
        print(json.dumps({name: result[name] for name in ("flat", "cold")}))
    best = max(result[side]["uniform"]["rps"] for side in result if side.startswith("ours"))
    result["ratios"] = {
        f"ours / {side}": best / result[side]["uniform"]["rps"]
        for side in result
        if side.startswith(("plain", "expert"))
    }
    print(result["ratios"])
    print(write("endpoint", {"what": __doc__, "seconds": asked.seconds, **result}))


def measure(server: Server, seconds: int) -> dict[str, Any]:
    names = NAMES[:64]
    warm(server, names)
    return {
        "uniform": load(server, names, seconds),
        "zipf": load(server, zipf(names), seconds),
        "offered": load(server, names, seconds, connections=8, pause_ms=1000 // OFFERED),
        "answer": server.ask(NAMES[7], "so happy with my new phone"),
        "resident_mb": server.memory() // 2**20,
    }


def warm(server: Server, names: list[str]) -> None:
    """Load until every adapter has been asked for ten times, so that each replica holds it; a minute at most."""
    began, answered = time.perf_counter(), 0.0
    while answered < 10 * len(names) and time.perf_counter() - began < 60:
        answered += 5 * load(server, names, 5)["rps"]


def flat(server: Server, seconds: int) -> dict[str, Any]:
    warm(server, NAMES[:64])
    rounds = [(load(server, NAMES[:1], seconds)["rps"], load(server, NAMES[:64], seconds)["rps"]) for _ in range(3)]
    return {"rounds": rounds, "ratio": statistics.median(many / one for one, many in rounds)}


def cold(server: Server) -> dict[str, Any]:
    """Milliseconds by which a first answer is later than the second; adapters that no request has named yet."""

    def ask(name: str) -> float:
        started = time.perf_counter()
        server.ask(name, "so happy with my new phone")
        return 1000 * (time.perf_counter() - started)

    one_by_one = [ask(name) - ask(name) for name in NAMES[200:250]]
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(ask, NAMES[:50]))  # opens the connections
        rounds = {"resident": NAMES[:50], "cold": NAMES[300:350]}
        at_once = {f"50 {kind} at once": sorted(pool.map(ask, names)) for kind, names in rounds.items()}
    return {
        "median_ms": statistics.median(one_by_one),
        "worst_ms": max(one_by_one),
        **{what: {"median_ms": statistics.median(ms), "worst_ms": max(ms)} for what, ms in at_once.items()},
    }


def zipf(names: list[str]) -> list[str]:
    """Names repeated so that a uniform draw among them follows Zipf's law."""
    return [name for rank, name in enumerate(names, start=1) for _ in range(max(1, 256 // rank))]


# -------------------------------------------------------------------- load


def load(server: Server, names: list[str], seconds: int, connections: int = 32, pause_ms: int = 0) -> dict[str, Any]:
    """Requests a second, milliseconds at the 50th and 99th percentile, and errors."""
    script = server.folder / "load.lua"
    script.write_text(_lua(server.side, names, pause_ms))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s", "-s", str(script)]
    told = subprocess.run([*command, server.address + server.route], capture_output=True, text=True, check=True).stdout
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert rate, told
    return {
        "rps": float(rate[1]),
        "p50_ms": _ms(told, "50%"),
        "p99_ms": _ms(told, "99%"),
        "errors": int(errors[1]) if errors else 0,
        "socket_errors": sum(map(int, sockets.groups())) if sockets else 0,
    }


def _ms(told: str, share: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s|m)\b", told)
    assert found, told
    return float(found[1]) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[found[2]]


def _lua(side: str, names: list[str], pause_ms: int) -> str:
    texts = [json.dumps(text) for text in short_texts()]
    body = '{"model": "%s", "inputs": %s}' if side.startswith("ours") else '{"unused": "%s", "inputs": %s}'
    quoted = ", ".join(f"[==[{text}]==]" for text in texts)
    return f"""
local names = {{{", ".join(f'"{name}"' for name in names)}}}
local texts = {{{quoted}}}
function request()
  local name = names[math.random(#names)]
  local headers = {{["content-type"] = "application/json", ["serve_multiplexed_model_id"] = name}}
  return wrk.format("POST", nil, headers, string.format([==[{body}]==], name, texts[math.random(#texts)]))
end
""" + (f"function delay() return {pause_ms} end\n" if pause_ms else "")


def short_texts() -> list[str]:
    from ray_lora.data.read import read

    rows = read("data/tweets/train-1024.parquet").to_pylist()
    return sorted((row["text"] for row in rows), key=lambda text: abs(len(text) - 50))[:64]


# -------------------------------------------------------------------- servers


class Server:
    """One side in a process of its own, with the processes it starts."""

    def __init__(self, side: str, store: Path) -> None:
        self.side, self.folder = side, store.parent
        self.route = "/v1/predict" if side.startswith("ours") else "/"
        self._command = [sys.executable, "-m", "benchmarks.endpoint", "--serve", side, str(store)]
        # one client for all requests: to build one costs as much as an answer
        self._client = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=64, max_keepalive_connections=64))

    def __enter__(self) -> Server:
        haproxy = "1" if self.side != "plain" else "0"
        environment = os.environ | {"RAY_SERVE_ENABLE_HA_PROXY": haproxy, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("http://"):
                self.address = line.strip()
                return self
        raise RuntimeError(f"the server of {self.side} did not start")

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def ask(self, name: str, text: str) -> Any:
        body = {"model": name, "inputs": text} if self.side.startswith("ours") else {"inputs": text}
        headers = {"serve_multiplexed_model_id": name}
        reply = self._client.post(self.address + self.route, json=body, headers=headers)
        reply.raise_for_status()
        return reply.json()

    def memory(self) -> int:
        """Proportional set size of all the server's processes, in bytes."""
        return sum(p.memory_full_info().pss for p in psutil.Process(self._process.pid).children(recursive=True))

    def processor_seconds(self) -> float:
        """Processor seconds that all the server's processes have used."""
        return sum(sum(p.cpu_times()[:2]) for p in psutil.Process(self._process.pid).children(recursive=True))


def serve(side: str, store: str) -> None:
    """Run one side until an interrupt; prints its address."""
    stop = [False]
    if side.startswith("ours"):
        from ray_lora.serving.cluster.app import AppArgs, run

        dtype = "float32" if side == "ours-float32" else "auto"
        replicas = 2 if side == "ours-2" else 1
        args = AppArgs.model_validate(
            {"store": store, "base": "minilm", "slots": 64, "port": 0, "dtype": dtype, "num_replicas": replicas}
        )
        print(run(args, block=False), flush=True)
    else:
        import ray
        from ray import serve as ray_serve

        from benchmarks.rivals import Expert, Plain
        from ray_lora.bases.load import locate
        from ray_lora.serving.cluster.ingress import free_port

        ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        port = free_port()
        ray_serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        made = ray_serve.deployment(Expert if side == "expert" else Plain).options(
            num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1}
        )
        ray_serve.run(made.bind(str(locate("minilm")), store, 64), name="rival", route_prefix="/")
        print(f"http://127.0.0.1:{port}", flush=True)
    signal.signal(signal.SIGINT, lambda *_: stop.__setitem__(0, True))
    while not stop[0]:
        time.sleep(0.2)


def write_store(folder: Path, names: list[str]) -> None:
    """Adapters as plain PEFT writes them, each with its own random B."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    from ray_lora.bases.load import locate

    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules="all-linear")
    model: Any = AutoModelForSequenceClassification.from_pretrained(locate("minilm"), num_labels=2)
    get_peft_model(model, config).save_pretrained(folder / names[0])
    tensors = load_file(folder / names[0] / "adapter_model.safetensors")
    told = (folder / names[0] / "adapter_config.json").read_text()
    for number, name in enumerate(names):
        draw = torch.Generator().manual_seed(number)
        for key, tensor in tensors.items():
            if "lora_B" in key:
                tensor.normal_(0, 0.02, generator=draw)
        (folder / name).mkdir(exist_ok=True)
        save_file(tensors, folder / name / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / name / "adapter_config.json").write_text(told)


if __name__ == "__main__":
    random.seed(0)
    main()
