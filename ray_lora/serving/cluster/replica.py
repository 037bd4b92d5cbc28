"""What Serve runs: processes that hold a base and its engine. The first base's take HTTP themselves (a handle hop
costs 2.5 ms) and hand on what is for another base."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from ray_lora.recipe import Json
from ray_lora.serving.args import AppArgs
from ray_lora.serving.http.relay import Asked, Head, ask, pour
from ray_lora.serving.peers import obey
from ray_lora.uncollected import uncollected


class BaseReplica:
    """A replica of one base."""

    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        logging.getLogger("ray_lora").setLevel(logging.INFO)
        with uncollected():
            from ray_lora.serving.cluster.start import start_endpoint
            from ray_lora.serving.http.routes import create_app
            from ray_lora.serving.metrics.meter import Meter
            from ray_lora.serving.metrics.ray_sink import RaySink
            from ray_lora.serving.metrics.watch import Watch

        self.endpoint = await asyncio.to_thread(start_endpoint, args)
        self.routes = create_app(self.endpoint, echo_ids=False)  # Serve does
        self.meter = Meter(RaySink())
        self._watching = asyncio.create_task(Watch(self.endpoint, self.meter).run())

    async def answer(self, asked: Asked) -> tuple[Any, ...]:
        """A request that reached another base's replica; see `Told`."""
        return tuple(await ask(self.routes, asked))

    async def pour(self, asked: Asked) -> AsyncIterator[Head | bytes]:
        """As `answer`, part by part as it comes."""
        async for part in pour(self.routes, asked):
            yield part

    async def obey(self, command: str, arguments: Sequence[Json]) -> Any:
        """A command for every replica; see `peers.py`."""
        return await obey(self.endpoint, command, arguments)

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        self.endpoint.check()


@serve.ingress()
class Replica(BaseReplica):
    """A replica of the first base, which takes HTTP; `others` are the other bases' deployments."""

    async def __init__(self, args: AppArgs, others: Mapping[str, DeploymentHandle[Any]]) -> None:  # type: ignore[misc]
        from ray_lora.serving.cluster.handles import Handles

        await BaseReplica.__init__(self, args)
        here = serve.get_replica_context()
        mine = serve.get_deployment_handle(here.deployment, here.app_name)
        self.endpoint.names.peers = Handles(self.endpoint.base_id, mine, others)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from ray_lora.serving.metrics.seen import Seen, to_stderr

        to_stderr()
        self.routes.add_middleware(Seen, meter=self.meter, log=self.endpoint.args.log_requests)
        return self.routes
