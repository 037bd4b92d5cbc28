"""Who a server is, said on each answer, and what is meant for another one refused. Plain ASGI around all that Serve
answers, health checks too; Serve loads it in every replica and in its own proxy. Knows no endpoint.

HAProxy sends the name of the server that it means and believes only an answer that bears this name. A port says less:
when a replica is gone, whoever takes its port next gets what was meant for it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-ray-lora-server"
AWAY = json.dumps(
    {
        "error": {
            "message": "the endpoint has no replica that answers now; try again",
            "type": "ServiceUnavailableError",
            "param": None,
            "code": "unavailable",
        }
    }
)
RETRY_AFTER_S = 1
_HEADER = HEADER.encode()


def middlewares() -> list[Middleware]:
    """What `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names; called in the process that is to answer."""
    import ray

    actor = ray.get_runtime_context().get_actor_name() or ""
    replica = actor.startswith("SERVE_REPLICA::")
    return [Middleware(Identity, name=server_name(actor), ready=None if replica else whole)]


def server_name(actor: str) -> str:
    """What HAProxy calls the server that is this actor of Serve's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", actor.replace("#", "-").replace("/", "."))


async def whole() -> bool:
    """Whether no deployment has lost a replica: each has its replicas, or an update is about to bring them."""
    from ray import serve

    status = await asyncio.to_thread(serve.status)
    told = (deployment.status.value for app in status.applications.values() for deployment in app.deployments.values())
    return "UNHEALTHY" not in told


class Identity:
    """Names its server on each answer; answers 503 where another one was meant, or while it is not `ready`.

    Serve's own proxy, the server that HAProxy asks where there is no replica, keeps requests until there is one: right
    in an update, and not when a replica has died.
    """

    def __init__(self, app: ASGIApp, name: str, ready: Callable[[], Awaitable[bool]] | None = None) -> None:
        self.app, self.name, self.ready = app, name.encode(), ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (_HEADER, self.name)]}
            await send(message)

        meant = [value for key, value in scope["headers"] if key == _HEADER]
        here = meant in ([], [self.name])  # none where the client asks a replica itself
        if here and (self.ready is None or scope["path"].startswith("/-/") or await self.ready()):
            await self.app(scope, receive, named)
            return
        headers = [(b"content-type", b"application/json"), (b"retry-after", str(RETRY_AFTER_S).encode())]
        await named({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": AWAY.encode()})
