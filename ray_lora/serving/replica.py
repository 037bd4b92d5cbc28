"""What Serve runs: one process that holds a base and its engine and takes HTTP itself (a handle hop costs 2.5 ms)."""

from __future__ import annotations

import asyncio
import logging
import os

from fastapi import FastAPI
from ray import serve

from ray_lora.serving.args import AppArgs


@serve.ingress()
class Replica:
    """One endpoint on Ray Serve."""

    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logging.getLogger("ray_lora").setLevel(logging.INFO)
        from ray_lora.serving.metrics import Meter
        from ray_lora.serving.ray_metrics import RaySink
        from ray_lora.serving.start import start_endpoint
        from ray_lora.serving.watch import Watch

        self.endpoint = await asyncio.to_thread(start_endpoint, args)
        self.meter = Meter(RaySink())
        self._watching = asyncio.create_task(Watch(self.endpoint, self.meter).run())

    def __serve_build_asgi_app__(self) -> FastAPI:
        from ray_lora.serving.http import create_app
        from ray_lora.serving.seen import Seen, to_stderr

        to_stderr()
        app = create_app(self.endpoint, echo_ids=False)  # Serve does
        app.add_middleware(Seen, meter=self.meter, log=self.endpoint.args.log_requests)
        return app

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        self.endpoint.check()
