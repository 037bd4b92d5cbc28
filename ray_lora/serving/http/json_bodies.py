"""JSON as bodies hold it, in which no name is said twice: which of two would count is nobody's to guess. No routes.

read('{"model": "a", "model": "b"}')    # json.JSONDecodeError: 'model' is said twice
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from ray_lora.recipe import Json

_SHOWN = 40  # letters of a name that an error repeats


def read(text: str | bytes) -> Json:
    """The value.

    Raises:
        json.JSONDecodeError: it is no JSON, or an object says a name twice. RecursionError: it is too deep.
        ValueError: bytes are not UTF-8, or a number has thousands of digits.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    told = dict(pairs)
    if len(told) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        name = counts.most_common(1)[0][0]
        raise json.JSONDecodeError(f"{name[:_SHOWN]!r} is said twice in one object; say it once", "", 0)
    return told


class Body(Request):
    """A request whose JSON is read so."""

    async def json(self) -> Any:
        """The body's value; see `read`."""
        if not hasattr(self, "_json"):
            self._json = read(await self.body())
        return self._json


class Route(APIRoute):
    """A route that reads its body so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `fastapi.routing.APIRoute`."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            body = Body(request.scope, request.receive)
            if request.method not in ("GET", "HEAD"):
                body._body = await request.body()  # which the request keeps for whoever relays it
            return await handler(body)

        return handle
