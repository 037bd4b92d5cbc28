"""What counting, timing and logging cost a request, in microseconds: `python -m benchmarks.seen`.

A request through `Seen` over an app that answers at once, less the same request without it; Ray's metrics are real.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import ray
from starlette.types import ASGIApp

REQUESTS = 20_000


async def answers_at_once(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"application/json"), (b"x-adapter", b"tweets@3"), (b"x-adapter-sha256", b"0" * 64)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


async def drive(app: ASGIApp, meter: Any = None) -> float:
    """Microseconds a request."""

    async def nothing(message: Any = None) -> Any: ...

    began = time.perf_counter()
    for number in range(REQUESTS):
        await app({"type": "http", "method": "POST", "path": "/v1/predict"}, nothing, nothing)
        if meter and number % 500 == 0:  # once a second at 500 requests a second
            meter.flush()
    return 1e6 * (time.perf_counter() - began) / REQUESTS


@ray.remote
def measure() -> dict[str, float]:
    import sys
    from pathlib import Path

    from ray_lora.serving.metrics.meter import HITS, Meter
    from ray_lora.serving.metrics.ray_sink import RaySink
    from ray_lora.serving.metrics.seen import Seen, to_stderr

    with Path("/dev/null").open("w") as sys.stderr:
        to_stderr()
        meter = Meter(RaySink())
        bare = asyncio.run(drive(answers_at_once))
        counted = asyncio.run(drive(Seen(answers_at_once, meter), meter))
        logged = asyncio.run(drive(Seen(answers_at_once, meter, "all"), meter))
    began = time.perf_counter()
    for _ in range(REQUESTS):
        meter.count(HITS, meter.adapters.label("tweets"))
    event = 1e6 * (time.perf_counter() - began) / REQUESTS
    return {"counted_us": counted - bare, "logged_us": logged - counted, "cache_event_us": event}


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    print(json.dumps({name: round(value, 2) for name, value in ray.get(measure.remote()).items()}))
