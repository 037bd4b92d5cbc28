"""Other bases and replicas through Serve's deployment handles. The only link between the processes of an endpoint.

A handle hop costs about 2.5 ms, so only what another base must answer takes one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from ray_lora.recipe import Json
from ray_lora.serving.http.relay import Asked, BaseAwayError, Head, Told
from ray_lora.serving.peers import answers_of

_AWAY = (RayActorError, DeploymentUnavailableError, TimeoutError)
_PATIENCE_S = 10.0  # with a command


class Handles:
    """See `Peers`.

    Args:
        mine: of this replica's own deployment.
        others: of the other bases' deployments, by the bases' ids.
    """

    def __init__(self, own: str, mine: DeploymentHandle[Any], others: Mapping[str, DeploymentHandle[Any]]) -> None:
        self.bases: Sequence[str] = tuple(others)
        self._all = {own: mine, **others}

    async def ask(self, base: str, asked: Asked) -> Told:
        """See `Peers.ask`. A client that leaves takes its request with it."""
        response = self._all[base].answer.remote(asked)
        try:
            return Told(*await response)
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except _AWAY as error:
            raise BaseAwayError(f"base {base!r} does not answer now ({type(error).__name__}); try again") from None

    async def pour(self, base: str, asked: Asked) -> AsyncIterator[Head | bytes]:
        """See `Peers.pour`. A client that leaves takes its request with it."""
        parts = self._all[base].options(stream=True).pour.remote(asked)
        assert isinstance(parts, DeploymentResponseGenerator)
        try:
            async for part in parts:
                yield part
        except _AWAY as error:
            raise BaseAwayError(f"base {base!r} does not answer now ({type(error).__name__}); try again") from None
        finally:
            parts.cancel()

    async def tell(self, base: str | None, command: str, *arguments: Json) -> list[Any]:
        """See `Peers.tell`."""
        chosen = list(self._all) if base is None else [base]
        told = await asyncio.gather(*(self._broadcast(one, command, arguments) for one in chosen))
        return answers_of([answer for answers in told for answer in answers])

    async def _broadcast(self, base: str, command: str, arguments: Sequence[Json]) -> list[Any]:
        response = self._all[base].broadcast("obey", command, arguments)
        try:
            told = await response.results_async(timeout_s=_PATIENCE_S, return_exceptions=True)
        except _AWAY as error:
            raise BaseAwayError(f"base {base!r} does not answer now ({type(error).__name__}); try again") from None
        return [answer for answer in told if not isinstance(answer, RayActorError)]  # the dead know nothing stale
