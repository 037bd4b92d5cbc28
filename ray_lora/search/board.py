"""The page of a running search, for this machine's own browser: a leaderboard with curves, and buttons that steer it.

    uvicorn.run(board_app(folder), host="127.0.0.1", port=8400)

GET /            the page: one file, nothing from elsewhere
GET /state       what `status` says, and each trial's evaluations
POST /ask        {"do": "clone", "trials": ["1a2b3_00003"], "assign": ["lora.r=4"], "fresh": false}

It asks as the command line does, by files in the run's folder. It answers under this machine's own names alone, so that
no page elsewhere reads it by a name of its own that it made to mean this machine; and only its own page may ask.
"""

from __future__ import annotations

import socket
from pathlib import Path

import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ray_lora.errors import RayLoraError, RecipeError
from ray_lora.html_policy import page_headers
from ray_lora.recipe import Json
from ray_lora.recipe_text import overridden
from ray_lora.search.asking import Request, ask, read_state
from ray_lora.search.standing import curves

_MOST = 64 << 10  # bytes of a request
_NAMES = ("127.0.0.1", "localhost")


class Asked(BaseModel):
    """What the page's buttons send; `assign` as on the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    do: str
    trials: list[str] = []
    assign: list[str] = []
    fresh: bool = False


def serve_board(folder: Path, port: int) -> tuple[uvicorn.Server, socket.socket]:
    """A server that is ready to run, and its socket on 127.0.0.1.

    Args:
        port: 0 for any that is free.

    Raises:
        RecipeError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise RecipeError(f"port {port} cannot be used: {error}; give another one with --port") from None
    config = uvicorn.Config(board_app(folder), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    return uvicorn.Server(config), listening


def board_app(folder: Path) -> ASGIApp:
    """The page of the search in a run's folder."""
    html = (Path(__file__).parent / "board.html").read_text(encoding="utf-8")

    async def page(request: HttpRequest) -> Response:
        return HTMLResponse(html, headers=page_headers(html))

    async def state(request: HttpRequest) -> Response:
        return await _answered(lambda: _shown(folder))

    async def asked(request: HttpRequest) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MOST:
                return _refused(413, f"a request has at most {_MOST:,} bytes")
        return await _answered(lambda: ask(folder, _request(body)))

    routes = [Route("/", page), Route("/state", state), Route("/ask", asked, methods=["POST"])]
    return OwnPage(Starlette(routes=routes))


class OwnPage:
    """Lets through what this machine's browser asks of this machine, and what the page itself sends as JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await (_against(scope["method"], Headers(scope=scope)) or self.app)(scope, receive, send)


def _against(method: str, headers: Headers) -> Response | None:
    """What a request's head tells against it."""
    host = headers.get("host", "")
    if host.partition(":")[0].lower() not in _NAMES:
        return _refused(403, f"Host {host[:80]!r} is not this page's; ask for 127.0.0.1")
    if method in ("GET", "HEAD"):
        return None
    if headers.get("origin") != f"http://{host}":
        return _refused(403, "only this page itself may ask; open it, and use its buttons")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return _refused(415, "a request is application/json")
    return None


def _request(body: bytes) -> Request:
    try:
        asked = Asked.model_validate_json(body)
        changes = overridden(asked.assign)
        return Request.model_validate({**asked.model_dump(exclude={"assign"}), "changes": changes})
    except ValidationError as error:
        raise RecipeError(f"this is no request: {error.errors()[0]['msg']}") from None


def _shown(folder: Path) -> dict[str, Json]:
    state = read_state(folder)
    names = [trial["name"] for trial in state["trials"]]
    return state | {"curves": curves(folder / "jobs", names, state["metric"])}


async def _answered(work: object) -> Response:
    assert callable(work)
    try:
        return JSONResponse(await run_in_threadpool(work))
    except RayLoraError as error:
        return _refused(400, str(error))


def _refused(status: int, said: str) -> Response:
    return JSONResponse({"error": said}, status_code=status, headers={"x-content-type-options": "nosniff"})
