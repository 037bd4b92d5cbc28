"""An id for every request, in `request.state.request_id` and on every answer as `x-request-id`. Plain ASGI."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
_TOKEN = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class RequestId:
    """Keeps a client's own id where it is a plain token of at most 128 letters; draws one otherwise.

    With `echo=False` an id that came with the request is left to the server around this app, which sends it back.
    """

    def __init__(self, app: ASGIApp, echo: bool = True) -> None:
        self.app, self.echo = app, echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER, b"")
        kept = _TOKEN.fullmatch(given) is not None
        identity = given if kept else uuid.uuid4().hex.encode()
        sent = self.echo or not kept
        scope.setdefault("state", {})["request_id"] = identity.decode()
        scope["state"]["id_header"] = {"x-request-id": identity.decode()} if sent else {}
        if not sent:
            await self.app(scope, receive, send)
            return

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [header for header in message.get("headers", ()) if header[0].lower() != HEADER]
                message = {**message, "headers": [*others, (HEADER, identity)]}
            await send(message)

        await self.app(scope, receive, named)
