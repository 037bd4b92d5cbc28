"""An endpoint behind a real HTTP server, without Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.serving.metrics.meter import Meter
from ray_lora.serving.metrics.seen import Seen


class Nowhere:
    def tell(self, metric: object, value: float, labels: tuple[str, ...]) -> None: ...


@contextmanager
def serving(world: Path, **options: Any) -> Iterator[str]:
    """The address of an endpoint behind a real HTTP server."""
    folders = {name: str(world / name) for name in ("store", "base", "results")}
    endpoint = start_endpoint(AppArgs(**(folders | {"dtype": "float32", "slots": 4} | options)))
    app = create_app(endpoint)
    app.add_middleware(Seen, meter=Meter(Nowhere()))
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            started.set()

        async def shutdown(self, sockets: Any = None) -> None:
            loop = asyncio.get_running_loop()
            for socket in (one for server in self.servers for one in server.sockets):
                loop.remove_reader(socket.fileno())
            for _ in range(3):  # what asyncio has accepted becomes a connection; of a closed server it is left open
                await asyncio.sleep(0)
            await super().shutdown(sockets)
            await endpoint.close()

    server = Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
