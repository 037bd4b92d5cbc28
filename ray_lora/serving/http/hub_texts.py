"""Hugging Face's `text_generation`: what its client asks of an adapter that writes texts, and the answers that it
parses, whole and as events. The words are those of its text-generation-inference server. Knows no Ray and no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Send

from ray_lora.errors import DataError, RayLoraError
from ray_lora.inference.prompts import Prompts
from ray_lora.inference.sampling import Choice as Token
from ray_lora.inference.sampling import Sampling
from ray_lora.recipe import Json
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http.asking import headers_of
from ray_lora.serving.http.pouring import Events, WhileThere
from ray_lora.serving.names import Choice
from ray_lora.serving.writing.reply import Reply, Said
from ray_lora.serving.writing.speaker import Wanted
from ray_lora.store import Entry

_TOKENS = 100  # of an answer, as its server has it
_SAME = {  # what is called so there, and here
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
}
_SWITCHES = ("do_sample", "details", "return_full_text")
_OFF = ("decoder_input_details", "watermark")  # taken where they are false
_DRAWN = ("temperature", "top_k", "top_p")  # each of which asks for tokens that are drawn


class TextRequest:
    """What a client asks.

    Raises:
        DataError: a parameter is not known, or two do not go together. RecipeError: one is out of bounds.
    """

    def __init__(self, inputs: Json, parameters: Mapping[str, Json], stream: bool) -> None:
        unknown = sorted(set(parameters) - {*_SAME, *_SWITCHES, *_OFF, "top_n_tokens"})
        if unknown:
            raise DataError(f"parameters {unknown} are not known; there are {', '.join([*_SAME, *_SWITCHES])}")
        for name in (*_SWITCHES, *_OFF):
            if not isinstance(parameters.get(name, False), bool):
                raise DataError(f"{name} {parameters[name]!r} must be true or false")
            if name in _OFF and parameters.get(name):
                raise DataError(f"{name} is not done here; leave it out")
        self.several = isinstance(inputs, list)
        if stream and self.several:
            raise DataError("a stream has one answer; give inputs as one text")
        self.texts: tuple[Json, ...] = tuple(inputs) if isinstance(inputs, list) else (inputs,)
        self.details, self.full = bool(parameters.get("details")), bool(parameters.get("return_full_text"))
        drawn = any(name in parameters for name in _DRAWN)
        if drawn and parameters.get("do_sample") is False:
            raise DataError(f"do_sample false takes the likeliest token; leave {', '.join(_DRAWN)} out")
        told: dict[str, Json] = {
            "max_tokens": _TOKENS,
            "temperature": float(drawn or bool(parameters.get("do_sample"))),
        }
        told |= {_SAME[name]: value for name, value in parameters.items() if name in _SAME}
        best = parameters.get("top_n_tokens")
        self.with_best = best is not None
        if self.details or stream:
            told["logprobs"] = 0 if best is None else best
        elif best is not None:
            raise DataError("top_n_tokens goes with details or stream; leave it out")
        self.seed = told.get("seed")
        self.sampling = Sampling.of(told)


def answer_texts(endpoint: Endpoint, choice: Choice, asked: TextRequest, stream: bool, request: Request) -> Response:
    """What the version answers."""
    wanted, identity = Wanted(texts=asked.texts), request.state.request_id
    key = endpoint.keys.of(request.headers)

    async def whole(send: Send) -> None:
        async with endpoint.speaker.speak(choice, wanted, asked.sampling, identity, key) as reply:
            answers: list[list[Said]] = [[] for _ in asked.texts]
            async for said in reply:
                answers[said.number].append(said)
            content = [_whole(asked, text, saids, reply) for text, saids in zip(asked.texts, answers, strict=True)]
            headers = headers_of(_entry(reply))
        told = JSONResponse(content if asked.several else content[0], headers=headers)
        await told(request.scope, request.receive, send)

    async def pour(send: Send) -> None:
        events: Events | None = None
        try:
            async with endpoint.speaker.speak(choice, wanted, asked.sampling, identity, key) as reply:
                events, saids = Events(send, headers_of(_entry(reply))), []
                async for said in reply:
                    saids.append(said)
                    await events.tell(_part(asked, saids, reply))
        except RayLoraError as error:
            if events is None or not events.begun:
                raise
            await events.tell({"error": str(error), "error_type": "generation"})
        assert events is not None
        await events.end()

    return WhileThere(pour if stream else whole)


def _whole(asked: TextRequest, text: Json, saids: Sequence[Said], reply: Reply) -> dict[str, Json]:
    written = "".join(said.text for said in saids)
    told: dict[str, Json] = {"generated_text": f"{text}{written}" if asked.full else written}
    if asked.details:
        tokens = [_token(said.token.token, said.token.logprob, reply.prompts) for said in saids]
        told["details"] = _ended(saids, asked) | {"prefill": [], "tokens": tokens}
        if asked.with_best:
            told["details"]["top_tokens"] = [_best(said.token, reply.prompts) for said in saids]
    return told


def _part(asked: TextRequest, saids: Sequence[Said], reply: Reply) -> dict[str, Json]:
    """An event. A token's text is what can be said once it is there, so that those of all events are the answer."""
    said = saids[-1]
    token = _token(said.token.token, said.token.logprob, reply.prompts) | {"text": said.text}
    told: dict[str, Json] = {"index": len(saids), "token": token, "generated_text": None, "details": None}
    entry = _entry(reply)
    told |= {"model": entry.name, "version": entry.version, "sha256": entry.sha256}
    if asked.with_best:
        told["top_tokens"] = _best(said.token, reply.prompts)
    if said.reason is not None:
        text = "".join(one.text for one in saids)
        told["generated_text"] = f"{asked.texts[0]}{text}" if asked.full else text
        told["details"] = _ended(saids, asked) | {"input_length": reply.prompt_tokens}
    return told


def _ended(saids: Sequence[Said], asked: TextRequest) -> dict[str, Json]:
    last = saids[-1]
    reason = "stop_sequence" if last.by_text else "eos_token" if last.reason == "stop" else "length"
    return {"finish_reason": reason, "generated_tokens": len(saids), "seed": asked.seed}


def _token(token: int, logprob: float | None, prompts: Prompts) -> dict[str, Json]:
    return {"id": token, "text": prompts.piece(token), "logprob": logprob, "special": prompts.is_special(token)}


def _best(token: Token, prompts: Prompts) -> list[dict[str, Json]]:
    return [_token(one, logprob, prompts) for one, logprob in token.best]


def _entry(reply: Reply) -> Entry:
    assert reply.entry is not None  # of the bare base this route gives embeddings
    return reply.entry
