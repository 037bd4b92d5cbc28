"""An hour of churn at a real endpoint (`ray-lora serve`, HTTP): do memory, open handles and threads stay flat?

    nice python -m benchmarks.soak [--minutes 60] [--rate 5]

Two tiny bases (one that classifies texts, one that writes), 26 names and always some guests in 4 slots a base.
Meanwhile adapters are published, promoted, split, shadowed, unloaded, loaded, evicted and deleted, and guests come by
HTTP with a new content and go for good; clients ask mixed adapters, give up texts half-way, ask wrongly, and go away.
Each answer of a known content is compared with plain PEFT's. Once a minute each process is looked at: resident memory,
its own (USS), its share (PSS), handles, threads. After the warm-up a slope an hour is fitted to each
(`benchmarks/slopes.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import write
from benchmarks.processes_of import Held, held
from benchmarks.slopes import fit
from benchmarks.soak_traffic import Traffic, World

MEASURED = ("rss_mb", "uss_mb", "pss_mb", "handles", "threads")
OURS = ("ray-lora serve", "controller", "proxy", "haproxy", "replica")
_KEPT = 5  # one of so many looks stands in the result file
# An hour's growth that is no growth: what an allocator's rests and a histogram's new buckets come to.
_ALLOWED_MB, _ALLOWED_SHARE, _ALLOWED_COUNT = 2.0, 0.02, 1.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=60)
    options.add_argument("--warm", type=float, help="minutes that no slope is fitted to (default: a quarter)")
    options.add_argument("--rate", type=float, default=5, help="requests a second")
    options.add_argument("--every", type=float, default=60, help="seconds between looks")
    options.add_argument("--name", default="soak", help="of the result file")
    asked = options.parse_args()
    warm_s = 60 * (asked.minutes / 4 if asked.warm is None else asked.warm)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        with Server(world) as server:
            result = asyncio.run(soak(server, world, asked.minutes, asked.rate, asked.every))
        result["disk_mb"] = round(sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 2**20, 1)
    judged = judge(result["looks"], warm_s)
    result["looks"] = result["looks"][::_KEPT]
    print_slopes(judged)
    told = {"what": __doc__, "minutes": asked.minutes, "warm_minutes": warm_s / 60, "rate": asked.rate}
    print(write(asked.name, {**told, "slopes": judged, **result}))
    grown = [part for part, told in judged.items() if part.startswith(OURS) and told["says"] != "flat"]
    if grown or result["failed"]:
        raise SystemExit(f"not flat: {grown}; failed: {result['failed']}")


class Server:
    """`ray-lora serve` as a person starts it, with a Ray of its own."""

    def __init__(self, world: World) -> None:
        settings = ["dtype=float32", "slots=4", "max_rank=4", "num_cpus=0.5", "ram_bytes=200000", "prefix_bytes=60000"]
        settings += ["max_body_bytes=60000", "body_s=5", f"bases={','.join(map(str, world.bases))}"]
        settings += [f"results={world.root / 'results'}"]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = [Path(sys.executable).parent / "ray-lora", "serve", *settings]
        self._process = subprocess.Popen(
            [*command, "--store", str(world.root / "store"), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            # Ray's workers are nicer than who starts them by 15, and one that gets no processor shows nothing of itself
            env=environment | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"},
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"http://\S+", line):
                self.address = found[0].rstrip("/")
                break
        else:
            raise RuntimeError(f"the endpoint did not start: {self._process.wait()}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate()


async def soak(server: Server, world: World, minutes: float, rate: float, every: float) -> dict[str, Any]:
    """Traffic for so long; what was seen of the processes, and what became of the requests."""
    traffic, looks, began = Traffic(server.address, world, rate), list[dict[str, Any]](), time.monotonic()
    running = asyncio.create_task(traffic.run())
    for number in range(1, int(60 * minutes / every) + 1):
        await asyncio.wait([running], timeout=max(0.0, began + number * every - time.monotonic()))
        if running.done():
            await running
        seen = await asyncio.to_thread(held, server.pid)
        counted = {"answered": traffic.counts.outcomes.total(), "failed": traffic.counts.failed.total()}
        status = await _status(server.address)
        looks.append(
            {"second": round(time.monotonic() - began, 1), **counted, **status, "held": [asdict(one) for one in seen]}
        )
        print(line(looks[-1], seen), flush=True)
    traffic.end()
    await running
    counts = traffic.counts
    return {
        "processor_share": processor_share(looks),
        "answered": counts.outcomes.total() - counts.failed.total(),
        "failed": counts.failed.total(),
        "failures": counts.examples,
        "outcomes": dict(sorted(counts.outcomes.items())),
        "changes": dict(sorted(traffic.changes.items())),
        "guests": world.came,
        "looks": looks,
    }


async def _status(address: str) -> dict[str, Any]:
    """What the replicas say of slots and queues."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        status = (await client.get("/v1/status")).json()
    return {"cache": [told["cache"] for told in (status, *status["others"]) if "cache" in told]}


def line(look: dict[str, Any], seen: list[Held]) -> str:
    """One look, for whoever waits."""
    told = [
        f"{one.part} {one.uss_mb:.0f} MB {one.handles}h {one.threads}t" for one in seen if one.part.startswith(OURS)
    ]
    return f"{look['second'] / 60:6.1f} min  {look['answered']} requests, {look['failed']} failed | " + " | ".join(told)


def processor_share(looks: list[dict[str, Any]]) -> float:
    """Cores that the endpoint's processes used between the first look and the last."""
    first, last = ({one["pid"]: one["processor_s"] for one in look["held"]} for look in (looks[0], looks[-1]))
    spent = sum(seconds - first.get(pid, 0.0) for pid, seconds in last.items())
    return round(spent / max(1e-9, looks[-1]["second"] - looks[0]["second"]), 3)


# -------------------------------------------------------------------- slopes


def judge(looks: list[dict[str, Any]], warm_s: float) -> dict[str, Any]:
    """Slopes an hour of all that a process held, by its part; a process that did not live throughout has none."""
    series: dict[tuple[str, int], list[tuple[float, dict[str, float]]]] = defaultdict(list)
    late = [look for look in looks if look["second"] >= warm_s]
    for look in late:
        for one in look["held"]:
            series[one["part"], one["pid"]].append((look["second"], one))
    judged: dict[str, Any] = {}
    for (part, pid), seen in sorted(series.items()):
        name = f"{part} ({pid})" if part in judged else part
        if len(seen) < max(3, len(late)):
            judged[name] = {"says": "was not there throughout", "looks": len(seen), "of": len(late)}
            continue
        told: dict[str, Any] = {
            key: _slope([s for s, _ in seen], [one[key] for _, one in seen], key) for key in MEASURED
        }
        verdicts = {told[key]["says"] for key in ("uss_mb", "handles", "threads")}  # RSS and PSS hold what others share
        judged[name] = {"says": next((word for word in ("grows", "unclear") if word in verdicts), "flat"), **told}
    return judged


def _slope(seconds: list[float], values: list[float], key: str) -> dict[str, Any]:
    middle = statistics.median(values)
    allowed = max(_ALLOWED_MB, _ALLOWED_SHARE * middle) if key.endswith("_mb") else _ALLOWED_COUNT
    slope = fit(seconds, values, allowed)
    return {"median": middle, "first": values[0], "last": values[-1], **asdict(slope), "says": slope.says}


def print_slopes(judged: dict[str, Any]) -> None:
    for part, told in judged.items():
        slopes = {
            key: f"{told[key]['an_hour']:+.2f} [{told[key]['low']:+.2f}, {told[key]['high']:+.2f}]"
            for key in MEASURED
            if key in told
        }
        print(f"{part:40s} {told['says']:8s} {json.dumps(slopes)}")


if __name__ == "__main__":
    main()
