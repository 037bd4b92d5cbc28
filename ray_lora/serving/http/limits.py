"""A limit on the size of request bodies, before anything reads them. Plain ASGI."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_lora.serving.http.faults import fault


class BodyLimit:
    """Answers 413 to bodies of more than `largest` bytes, whether their length is declared or not.

    Args:
        larger: bytes that other paths may have.
    """

    def __init__(self, app: ASGIApp, largest: int, larger: Mapping[str, int] = MappingProxyType({})) -> None:
        self.app, self.largest, self.larger = app, largest, larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        largest = self.larger.get(scope["path"], self.largest)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        messages: list[Message] = []
        size = int(declared) if declared.isdigit() else 0
        more = True
        while more and size <= largest:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            messages.append(message)
            more = message.get("more_body", False)
            size = max(size, sum(len(part.get("body", b"")) for part in messages))
        if size > largest:
            refusal = fault(413, f"the body exceeds {largest} bytes; send fewer inputs at a time", "too_large")
            await refusal(scope, receive, send)
            return
        messages.reverse()

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)
