"""One HTTP request handed from the process that got it to the one whose base it is for. Knows no Ray and no routes.

Whoever finds that another base is to answer raises ElsewhereError; the app then relays the request as it came, and the
answer as it comes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send

from ray_lora.errors import RayLoraError

Headers = Sequence[tuple[bytes, bytes]]


class ElsewhereError(RayLoraError, LookupError):
    """Another base of this address is to answer, with this version where a split has chosen one."""

    def __init__(self, base: str, version: int | None = None) -> None:
        super().__init__(base)
        self.base, self.version = base, version

    def __reduce__(self) -> tuple[type[ElsewhereError], tuple[str, int | None]]:
        return type(self), (self.base, self.version)


class BaseAwayError(RayLoraError, ConnectionError):
    """A base of this address does not answer now. Trying again later may help."""


class Asked(NamedTuple):
    """A request."""

    method: str
    path: bytes
    query: bytes
    headers: Headers
    body: bytes
    version: int | None  # of a name that is split: the version that was chosen

    def of_its_own(self, body: bytes, identity: str) -> Asked:
        """The same request with another body in JSON, and another id."""
        told = {
            b"content-type": b"application/json",
            b"content-length": str(len(body)).encode(),
            b"x-request-id": identity.encode(),
        }
        others = [(name, value) for name, value in self.headers if name not in told]
        return self._replace(headers=[*others, *told.items()], body=body)


class Head(NamedTuple):
    """How an answer begins."""

    status: int
    headers: Headers


class Told(NamedTuple):
    """An answer."""

    status: int
    headers: Headers
    body: bytes


async def asked_of(request: Request, version: int | None) -> Asked:
    """The request, to be sent on; with the id that it has here."""
    scope = request.scope
    identity = (b"x-request-id", request.state.request_id.encode())
    headers = [*(header for header in scope["headers"] if header[0] != identity[0]), identity]
    path = scope.get("raw_path") or scope["path"].encode()
    return Asked(scope["method"], path, scope["query_string"], headers, await request.body(), version)


async def ask(app: ASGIApp, asked: Asked) -> Told:
    """What an app of this process answers."""
    told: list[Message] = []

    async def send(message: Message) -> None:
        told.append(message)

    await app(_scope(asked), _receiving(asked), send)
    start, *rest = told
    return Told(start["status"], list(start["headers"]), b"".join(part.get("body", b"") for part in rest))


async def pour(app: ASGIApp, asked: Asked) -> AsyncGenerator[Head | bytes, None]:
    """What an app of this process answers, part by part as it comes. Who reads no further takes the request with it."""
    parts: asyncio.Queue[Message | None] = asyncio.Queue()

    async def send(message: Message) -> None:
        parts.put_nowait(message)

    answering = asyncio.ensure_future(app(_scope(asked), _receiving(asked), send))
    answering.add_done_callback(lambda _: parts.put_nowait(None))
    try:
        while (part := await parts.get()) is not None:
            if part["type"] == "http.response.start":
                yield Head(part["status"], list(part["headers"]))
            elif part.get("body"):
                yield part["body"]
        answering.result()
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def pass_on(parts: AsyncIterator[Head | bytes], send: Send) -> None:
    """Send an answer on as its parts come."""
    async for part in parts:
        if isinstance(part, bytes):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        else:
            head = Head(*part)  # which has lost its type on the way
            await send({"type": "http.response.start", "status": head.status, "headers": _own(head.headers)})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def wants_parts(asked: Asked) -> bool:
    """Whether the client wants the answer as it comes: `"stream": true` in a body of JSON."""
    if b'"stream"' not in asked.body:
        return False
    try:
        body = json.loads(asked.body)
    except ValueError:
        return False
    return isinstance(body, dict) and body.get("stream") is True


def _receiving(asked: Asked) -> Receive:
    bodies = [asked.body]

    async def receive() -> Message:
        if not bodies:
            await asyncio.Event().wait()  # a client that leaves takes its request with it: this is cancelled
        return {"type": "http.request", "body": bodies.pop()}

    return receive


def _scope(asked: Asked) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": asked.method,
        "path": asked.path.decode("utf-8", "replace"),
        "raw_path": asked.path,
        "root_path": "",
        "query_string": asked.query,
        "headers": list(asked.headers),
        "client": None,
        "server": None,
        "state": {"version": asked.version},
    }


def _own(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that are the answer's; its id is said here."""
    return [(key, value) for key, value in headers if key != b"x-request-id"]


def response_of(told: Told) -> Response:
    """The answer, as it came."""
    response = Response(told.body, told.status)
    response.raw_headers = _own(told.headers)
    return response
