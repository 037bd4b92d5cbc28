"""Answers that take long: given up when the client goes away, and sent part by part where it wants them so. Knows
neither routes nor adapters.

    return WhileThere(answer)                  # `await answer(send)` until it is done or nobody is there any more

Events are Server-Sent Events, https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ray_lora.recipe import Json

GONE = 499  # nginx's word for a client that did not wait; only counters see it
DONE = "[DONE]"  # OpenAI's last event
_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class WhileThere(Response):
    """What `answer` sends; it is cancelled, and has ended, before this has, when the client goes away.

    What it raises before it has sent anything is answered as elsewhere.
    """

    def __init__(self, answer: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def watched(message: Mapping[str, Json]) -> None:
            nonlocal began
            began = True
            await send(dict(message))

        working = asyncio.ensure_future(self._answer(watched))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((working, left), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, left):
                task.cancel()
            await asyncio.gather(working, left, return_exceptions=True)
        if not began:
            await Response(status_code=GONE)(scope, receive, send)


class Events:
    """A stream of events over `send`; the answer begins with the first, so that what fails before has its status."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send, self._headers, self.begun = send, {**_HEADERS, **headers}, False

    async def tell(self, told: Json) -> None:
        """One event: JSON, or a text as it is."""
        if not self.begun:
            self.begun = True
            headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        data = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False, separators=(",", ":"))
        await self._send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

    async def end(self) -> None:
        """No event is to come."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    """Wait until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
