"""OpenAI's /v1/completions and /v1/chat/completions: any adapter that writes texts, or the bare base, whole or as
events. Beside OpenAI's fields each answer, and each event, has the `version` and `sha256` of what wrote it.

Keys, limits, headers and errors are those of /v1/predict. Knows nothing of Ray or tensors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Send

from ray_lora.errors import RayLoraError
from ray_lora.inference.sampling import Sampling
from ray_lora.recipe import Json
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http import faults
from ray_lora.serving.http.asking import chosen, headers_of, ref_of, user_of
from ray_lora.serving.http.openai_bodies import ChatRequest, CompletionRequest
from ray_lora.serving.http.openai_shapes import Answer, Chat, Completions, Shape
from ray_lora.serving.http.pouring import DONE, Events, WhileThere
from ray_lora.serving.http.relay import ElsewhereError
from ray_lora.serving.names import Choice
from ray_lora.serving.writing.reply import Reply
from ray_lora.serving.writing.speaker import Wanted
from ray_lora.store import Entry

_MARK = 12  # letters of a hash in `system_fingerprint`


def add_openai(app: FastAPI, endpoint: Endpoint) -> None:
    """Add both routes."""

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await answered(body, request, Completions())

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await answered(body, request, Chat())

    async def answered(body: CompletionRequest | ChatRequest, request: Request, shape: Shape) -> Response:
        ref = ref_of(endpoint, body.model, request)
        asked = _Asked(endpoint, ref, shape, body.wanted, body.sampling, body.with_usage, request)
        if ref in endpoint.names.peers.bases:
            raise ElsewhereError(ref)
        if not endpoint.names.is_base(ref):
            asked.choice = await endpoint.names.choose(ref, user_of(body.user, request), chosen(request))
        return WhileThere(asked.pour if body.stream else lambda send: asked.whole(request, send))


class _Asked:
    """One request."""

    choice: Choice | None = None

    def __init__(
        self,
        endpoint: Endpoint,
        ref: str,
        shape: Shape,
        wanted: Wanted,
        sampling: Sampling,
        with_usage: bool,
        request: Request,
    ) -> None:
        self._endpoint, self._ref, self._shape = endpoint, ref, shape
        self._wanted, self._sampling, self._with_usage = wanted, sampling, with_usage
        self._id, self._created = request.state.request_id, int(time.time())
        self._key = endpoint.keys.of(request.headers)
        self._answers = [Answer(number) for number in range(wanted.count * sampling.n)]

    async def whole(self, request: Request, send: Send) -> None:
        """Answer once all is written."""
        logprobs = self._sampling.logprobs is not None
        async with self._speak() as reply:
            async for said in reply:
                self._answers[said.number].add(said)
            choices = [self._shape.choice(answer, reply.prompts, logprobs) for answer in self._answers]
            told = self._told(reply.entry, self._shape.whole) | {"choices": choices, "usage": _usage(reply)}
            headers = _headers(reply.entry)
        await JSONResponse(told, headers=headers)(request.scope, request.receive, send)

    async def pour(self, send: Send) -> None:
        """Answer as it is written; what fails once it has begun is the last event."""
        events: Events | None = None
        try:
            async with self._speak() as reply:
                events = Events(send, _headers(reply.entry))
                await self._pour(reply, events)
        except RayLoraError as error:
            if events is None or not events.begun:
                raise
            await events.tell(faults.body_of(error))
        assert events is not None
        await events.end()

    def _speak(self) -> AbstractAsyncContextManager[Reply]:
        speaker = self._endpoint.speaker
        return speaker.speak(self.choice, self._wanted, self._sampling, self._id, self._key)

    async def _pour(self, reply: Reply, events: Events) -> None:
        logprobs, told = self._sampling.logprobs is not None, self._told(reply.entry, self._shape.part)
        if self._with_usage:
            told["usage"] = None
        async for said in reply:
            answer = self._answers[said.number]
            if not answer.tokens and (begin := self._shape.begin(said.number)) is not None:
                await events.tell(told | {"choices": [begin]})
            answer.add(said)
            if said.text or said.reason or logprobs:
                delta = self._shape.delta(said, answer, reply.prompts, logprobs)
                await events.tell(told | {"choices": [delta]})
        if self._with_usage:
            await events.tell(told | {"choices": [], "usage": _usage(reply)})
        await events.tell(DONE)

    def _told(self, entry: Entry | None, what: str) -> dict[str, Json]:
        """What is said with each part of an answer."""
        base = self._endpoint.machine.base.fingerprint
        marks = [base] if entry is None else [base, entry.sha256]
        return {
            "id": f"{self._shape.prefix}-{self._id}",
            "object": what,
            "created": self._created,
            "model": self._ref,
            "version": None if entry is None else entry.version,
            "sha256": marks[-1],
            "system_fingerprint": "fp_" + "_".join(mark[:_MARK] for mark in marks),
        }


def _headers(entry: Entry | None) -> Mapping[str, str]:
    return {} if entry is None else headers_of(entry)


def _usage(reply: Reply) -> dict[str, int]:
    total = reply.prompt_tokens + reply.tokens
    return {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens, "total_tokens": total}
