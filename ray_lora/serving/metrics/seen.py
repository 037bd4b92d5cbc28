"""Every request counted, timed and, where asked for, written down as one JSON line. Plain ASGI; knows no Ray.

    {"time": "2026-01-31T12:00:00.000Z", "id": "…", "method": "POST", "route": "/v1/predict", "status": 200,
     "adapter": "tweets@3", "rows": 2, "ms": 21.4, "encode_ms": 0.4, "queue_ms": 3.1, "compute_ms": 16.0}

No inputs, answers or keys: only what is named above.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import datetime, timezone

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_lora.serving.args import LogRequests
from ray_lora.serving.metrics.meter import ADAPTER_SECONDS, REQUESTS, SECONDS, Meter
from ray_lora.serving.metrics.trace import Trace, traced

_log = logging.getLogger("ray_lora.requests")


class Seen:
    """Counts what passes through it; `log` says of which requests a line is written."""

    def __init__(self, app: ASGIApp, meter: Meter, log: LogRequests = "none") -> None:
        self.app, self.meter, self.log = app, meter, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        trace = Trace()
        status, headers = 500, {}  # until an answer begins

        async def watched(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = dict(message.get("headers", ()))
                if trace.compute_s is not None:
                    message["headers"] = [*message["headers"], (b"server-timing", _stages(trace))]
            await send(message)

        with traced(trace):
            try:
                await self.app(scope, receive, watched)
            finally:
                adapter = headers.get(b"x-adapter", b"").decode() or trace.adapter
                route = getattr(scope.get("route"), "path", "none")  # of paths that nothing answers, one label
                seconds = time.perf_counter() - began
                self._count(route, status, adapter, seconds)
                if self.log == "all" or (self.log == "errors" and status >= 400):
                    identity = scope.get("state", {}).get("request_id", "")
                    _write(identity, scope["method"], route, status, adapter, seconds, trace)

    def _count(self, route: str, status: int, adapter: str, seconds: float) -> None:
        """A request that several adapters answer counts for each."""
        for one in adapter.split(", "):
            label = self.meter.adapters.label(one.partition("@")[0]) if one else ""
            self.meter.count(REQUESTS, route, str(status), label)
            if label:
                self.meter.count(ADAPTER_SECONDS, label, by=seconds)
        self.meter.observe(SECONDS, seconds, route)


def to_stderr() -> None:
    """Write the lines, and nothing else, to standard error; where the host program has set up no place for them."""
    if not _log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
        _log.propagate = False


def _write(identity: str, method: str, route: str, status: int, adapter: str, seconds: float, trace: Trace) -> None:
    line = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "id": identity or None,
        "method": method,
        "route": route,
        "status": status,
        "adapter": adapter or None,
        "rows": trace.rows,
        "ms": _ms(seconds),
        "encode_ms": _ms(trace.encode_s),
        "queue_ms": _ms(trace.queue_s),
        "compute_ms": _ms(trace.compute_s),
    }
    _log.info("%s", json.dumps(line))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 2)


def _stages(trace: Trace) -> bytes:
    """A Server-Timing header's value, which browsers' developer tools draw."""
    stages = {"encode": trace.encode_s, "queue": trace.queue_s, "compute": trace.compute_s}
    return ", ".join(f"{name};dur={_ms(took)}" for name, took in stages.items() if took is not None).encode()
