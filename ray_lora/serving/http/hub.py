"""Hugging Face's inference API: what `InferenceClient(model="http://host:8000/models/tweets")` asks and parses.

One route takes every task's `inputs` and `parameters` and answers the bare value that the client's types read; keys,
limits, headers and errors are those of /v1/predict. Knows nothing of Ray or tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from ray_lora.errors import DataError
from ray_lora.recipe import Json
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http import schemas
from ray_lora.serving.http.asking import chosen, headers_of, ref_of, user_of
from ray_lora.serving.http.hub_texts import TextRequest, answer_texts
from ray_lora.serving.http.relay import ElsewhereError
from ray_lora.tasks import task_of
from ray_lora.tasks.scored import Scored


def add_hub(app: FastAPI, endpoint: Endpoint) -> None:
    """Add `POST /models/{ref}`."""

    @app.post("/models/{ref:path}")
    async def models(ref: str, body: schemas.HubRequest, request: Request) -> Response:
        ref = ref_of(endpoint, ref, request)
        beside = body.model_dump(exclude={"inputs", "parameters", "stream"})
        parameters = {name: value for name, value in (beside | (body.parameters or {})).items() if value is not None}
        if ref in endpoint.names.peers.bases:
            raise ElsewhereError(ref)
        if endpoint.names.is_base(ref):
            _check_stream(body.stream, ref)
            return JSONResponse(await _of_the_base(endpoint, body.inputs, parameters))
        choice = await endpoint.names.choose(ref, user_of(None, request), chosen(request))
        if await endpoint.speaker.writes(choice.entry):
            asked = TextRequest(body.inputs, parameters, bool(body.stream))
            return answer_texts(endpoint, choice, asked, bool(body.stream), request)
        _check_stream(body.stream, choice.entry.ref)
        several = isinstance(body.inputs, list)
        inputs = body.inputs if several else [body.inputs]
        told = choice.entry.task
        if told is not None and issubclass(task_of(told), Scored):
            parameters = {**Scored.full, **parameters}  # every label unless it is said how many
        answer = await endpoint.predict(choice, inputs, parameters, request.state.request_id)
        content = answer.predictions
        if isinstance(answer.task, Scored):  # a list of labels for each input, also for one
            content = [ranked if isinstance(ranked, list) else [ranked] for ranked in content]
        elif not several:
            [content] = content
        return JSONResponse(content, headers=headers_of(answer.entry))


async def _of_the_base(endpoint: Endpoint, inputs: Json, parameters: Mapping[str, Json]) -> Json:
    """`feature_extraction`: a vector for a text, a list for a list; `sentence_similarity`: a number a sentence."""
    if isinstance(inputs, Mapping):
        source, sentences = inputs.get("source_sentence"), inputs.get("sentences")
        if not isinstance(sentences, list) or set(inputs) != {"source_sentence", "sentences"}:
            raise DataError("inputs must be a text, a list of texts, or {source_sentence: a text, sentences: [texts]}")
        _check(parameters, frozenset())
        vectors, _ = await endpoint.embed([source, *sentences])
        return [_cosine(vectors[0], vector) for vector in vectors[1:]]
    _check(parameters, frozenset({"normalize", "truncate"}))
    if parameters.get("truncate") is False:
        raise DataError("a text is cut where the base's positions end, and truncate is false; leave it out")
    vectors, _ = await endpoint.embed(inputs if isinstance(inputs, list) else [inputs])
    if parameters.get("normalize"):
        vectors = [_normal(vector) for vector in vectors]
    return vectors if isinstance(inputs, list) else vectors[0]


def _check_stream(stream: bool | None, ref: str) -> None:
    if stream:
        raise DataError(f"{ref} writes no texts, and its answers come whole; leave stream out")


def _check(parameters: Mapping[str, Json], allowed: frozenset[str]) -> None:
    unknown = sorted(set(parameters) - allowed)
    if unknown:
        takes = ", ".join(sorted(allowed)) or "none"
        raise DataError(f"parameters {unknown} are not known to a base's embeddings; it takes {takes}")


def _normal(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(_normal(one), _normal(other), strict=True))
