"""Limits on the size of request bodies and on the time that they take, before anything reads them. Plain ASGI."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_lora.serving.http.faults import fault

_TOGETHER = 32  # bodies of the largest size that may be on their way at once


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
        self.held = 0  # bytes of bodies that are not whole yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        body = _Body(receive, self.larger.get(scope["path"], self.largest), scope)
        refused: ASGIApp | None
        try:
            refused = await asyncio.wait_for(self._whole(body), self.within_s)
        except asyncio.TimeoutError:
            said = f"the body was not there within {self.within_s:g} s; send it again, all at once"
            refused = fault(408, said, "body_too_slow", headers={"connection": "close"})
        finally:
            self.held -= body.got
        if refused is not None:
            await refused(scope, receive, send)
        elif not body.left:
            await self.app(scope, body.replay, send)

    async def _whole(self, body: _Body) -> ASGIApp | None:
        """Read a body; what refuses it, if anything does."""
        while True:
            if body.size > body.largest:
                said = f"the body exceeds {body.largest} bytes; send fewer inputs at a time"
                return fault(413, said, "too_large")
            if self.held > _TOGETHER * self.largest:
                said = "too many bodies are on their way; try again later"
                return fault(503, said, "overloaded", headers={"retry-after": "1"})
            if body.ended:
                return None
            came = await body.read()  # others come and go meanwhile: the sum is read after it
            self.held += came


class _Body:
    """What has come of one request's body."""

    def __init__(self, receive: Receive, largest: int, scope: Scope) -> None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        self.largest, self.got = largest, 0
        self.size = int(declared) if declared.isdigit() else 0  # or as much as it says
        self.ended = self.left = False
        self._receive = receive
        self._messages: deque[Message] = deque()

    async def read(self) -> int:
        """Wait for more; how many bytes came."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.ended = self.left = True
            return 0
        self._messages.append(message)
        self.ended = not message.get("more_body", False)
        came = len(message.get("body", b""))
        self.got += came
        self.size = max(self.size, self.got)
        return came

    async def replay(self) -> Message:
        """What came, once more."""
        return self._messages.popleft() if self._messages else await self._receive()
