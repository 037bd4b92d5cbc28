"""Files as request bodies, as Hugging Face's client sends pictures without parameters: made `{"inputs": base64}` of, so
that all behind it reads JSON. Plain ASGI."""

from __future__ import annotations

import base64
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ROUTE = "/models/"
_FILES = (b"image/", b"audio/", b"application/octet-stream")


class RawInputs:
    """Of `POST /models/{ref}` alone; bodies whose size nothing limits must not come so far."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        kind = headers.get(b"content-type", b"")
        there = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith(_ROUTE)
        if not there or (kind and not kind.lower().startswith(_FILES)):
            await self.app(scope, receive, send)
            return
        data, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            data += message.get("body", b"")
            more = message.get("more_body", False)
        if kind or not data.lstrip().startswith((b"{", b"[", b'"')):  # the client says no type of plain bytes
            data = json.dumps({"inputs": base64.b64encode(data).decode()}).encode()
            kind = b"application/json"
        told: dict[bytes, bytes] = {b"content-length": str(len(data)).encode()}
        if kind:
            told[b"content-type"] = kind
        others = [(name, value) for name, value in scope["headers"] if name not in told]
        messages: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app({**scope, "headers": [*others, *told.items()]}, replay, send)
