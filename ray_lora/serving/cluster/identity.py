"""Who a server is, said on each answer, and what is meant for another one refused. Plain ASGI around all that Serve
answers, health checks too; Serve loads it in every replica and in its own proxy. Knows no endpoint.

HAProxy sends the name of the server that it means and believes only an answer that bears this name. A port says less:
when a replica is gone, whoever takes its port next gets what was meant for it.
"""

from __future__ import annotations

import json
import re

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

    return [Middleware(Identity, name=server_name(ray.get_runtime_context().get_actor_name() or ""))]


def server_name(actor: str) -> str:
    """What HAProxy calls the server that is this actor of Serve's; nothing unless it is a replica.

    Serve's own proxy, the server that HAProxy asks where there is no replica, would keep a request until there is one.
    """
    if not actor.startswith("SERVE_REPLICA::"):
        return ""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", actor.replace("#", "-").replace("/", "."))


class Identity:
    """Names its server on each answer; answers 503 where another one was meant. Without a name it is never meant."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app, self.name = app, name.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (_HEADER, self.name)]}
            await send(message)

        meant = [value for key, value in scope["headers"] if key == _HEADER]
        if meant in ([], [self.name]):  # none where the client asks a replica itself
            await self.app(scope, receive, named)
            return
        headers = [(b"content-type", b"application/json"), (b"retry-after", str(RETRY_AFTER_S).encode())]
        await named({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": AWAY.encode()})
