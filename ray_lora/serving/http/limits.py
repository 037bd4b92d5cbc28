"""Limits on the size of request bodies and on the time that they take, before anything reads them. Plain ASGI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import MappingProxyType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_lora.serving.http.faults import fault


class BodyLimit:
    """Answers 413 to bodies of more than `largest` bytes, whether their length is declared or not, and 408 to those
    that are not there in time.

    Args:
        larger: bytes that other paths may have.
        within_s: seconds from the head to the body's end.
    """

    def __init__(
        self, app: ASGIApp, largest: int, larger: Mapping[str, int] = MappingProxyType({}), within_s: float = 15
    ) -> None:
        self.app, self.largest, self.larger, self.within_s = app, largest, larger, within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        largest = self.larger.get(scope["path"], self.largest)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        messages: list[Message] = []
        size = int(declared) if declared.isdigit() else 0
        more, until, got = True, time.monotonic() + self.within_s, 0
        while more and size <= largest:
            try:
                message = await asyncio.wait_for(receive(), max(0.001, until - time.monotonic()))
            except asyncio.TimeoutError:
                said = f"the body was not there within {self.within_s:g} s; send it again, all at once"
                late = fault(408, said, "body_too_slow", headers={"connection": "close"})
                await late(scope, receive, send)
                return
            if message["type"] == "http.disconnect":
                return
            messages.append(message)
            more = message.get("more_body", False)
            got += len(message.get("body", b""))
            size = max(size, got)
        if size > largest:
            refusal = fault(413, f"the body exceeds {largest} bytes; send fewer inputs at a time", "too_large")
            await refusal(scope, receive, send)
            return
        messages.reverse()

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)
