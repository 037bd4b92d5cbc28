"""One request that names several adapters: the same inputs, answered by each of them, all or none.

    {"model": ["signs", "cars"], "inputs": "…", "parameters": {"signs": {"threshold": 0.3}}}
    {"model": ["signs", "cars"], "answers": {"signs": {"version": 2, "predictions": […], …}, "cars": {…}}}

Rows of those on one base go into one batch, and into one pass where they may share one; each other base is asked beside
it, as for one adapter. Knows nothing of Ray or tensors.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from ray_lora.errors import DataError, RayLoraError
from ray_lora.recipe import Json
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http import faults
from ray_lora.serving.http.asking import answered_of, user_of
from ray_lora.serving.http.relay import ElsewhereError, Told, asked_of
from ray_lora.serving.inputs import check_count
from ray_lora.serving.names import Choice
from ray_lora.serving.together import Together

_ID = 120  # letters of a request's id that stay, so that it has room for the number of an answer


async def answer_each(
    endpoint: Endpoint,
    refs: Sequence[str],
    inputs: Sequence[Json],
    parameters: Mapping[str, Json],
    user: str | None,
    request: Request,
) -> Response:
    """Every adapter's answers; the first refusal among them, by the adapter's name.

    Args:
        refs: as the request names them, each checked against its key.
        parameters: of each ref; one that is not there has none.
    """
    check_count(len(inputs), endpoint.args.max_inputs, len(refs))
    _check_parameters(parameters, refs)
    chosen: list[Choice | ElsewhereError] = []
    for ref in refs:
        try:
            chosen.append(await endpoint.names.choose(ref, user_of(user, request)))
        except ElsewhereError as error:
            chosen.append(error)
        except RayLoraError as error:
            return faults.of(error, ref)
    together = Together(sum(isinstance(choice, Choice) for choice in chosen))
    whole = request.state.request_id[:_ID]

    async def mine(choice: Choice, ref: str, identity: str) -> dict[str, Json]:
        async with together.member() as member:
            answer = await endpoint.predict(choice, inputs, parameters.get(ref, {}), identity, member)
            return answered_of(answer)

    async def theirs(home: ElsewhereError, ref: str, identity: str) -> dict[str, Json]:
        body = {"model": ref, "inputs": inputs, "parameters": parameters.get(ref, {}), "user": user}
        asked = await asked_of(request, home.version)
        asked = asked.of_its_own(json.dumps(body).encode(), identity)
        return _told(await endpoint.names.peers.ask(home.base, asked))

    parts = [
        mine(choice, ref, f"{whole}.{at}") if isinstance(choice, Choice) else theirs(choice, ref, f"{whole}.{at}")
        for at, (choice, ref) in enumerate(zip(chosen, refs, strict=True), start=1)
    ]
    answers: dict[str, Json] = {}
    for at, (ref, found) in enumerate(
        zip(refs, await asyncio.gather(*parts, return_exceptions=True), strict=True), start=1
    ):
        if isinstance(found, _RefusedError):
            return found.response(ref)
        if isinstance(found, RayLoraError):
            return faults.of(found, ref)
        if isinstance(found, BaseException):
            raise found
        answers[ref] = {**found, "id": f"{whole}.{at}"}
    headers = {
        "x-adapter": ", ".join(f"{one['model']}@{one['version']}" for one in answers.values()),
        "x-adapter-sha256": ", ".join(one["sha256"] for one in answers.values()),
    }
    return JSONResponse({"model": list(refs), "answers": answers}, headers=headers)


class _RefusedError(Exception):
    """Another base's refusal."""

    def __init__(self, told: Told) -> None:
        super().__init__(told.status)
        self.told = told

    def response(self, ref: str) -> Response:
        error = json.loads(self.told.body)["error"]
        again = [value.decode() for key, value in self.told.headers if key == b"retry-after"]
        headers = {"retry-after": again[0]} if again else None
        return faults.fault(
            self.told.status, faults.about(ref, error["message"]), error["code"], error["param"], headers
        )


def _told(told: Told) -> dict[str, Json]:
    if told.status != 200:
        raise _RefusedError(told)
    sha256 = dict(told.headers).get(b"x-adapter-sha256", b"").decode()
    return {**json.loads(told.body), "sha256": sha256}


def _check_parameters(parameters: Mapping[str, Json], refs: Sequence[str]) -> None:
    """Each adapter's own, because tasks take different ones."""
    for name, mine in parameters.items():
        if name not in refs or not isinstance(mine, Mapping):
            shape = "{" + ", ".join(f"{ref!r}: {{...}}" for ref in refs) + "}"
            raise DataError(
                f"parameters of several adapters are given by name, as {shape}, and {name!r} is none of that"
            )
