"""The HTTP routes of an endpoint: OpenAI's, vLLM's and Hugging Face's shapes. Knows nothing of Ray or tensors."""

from __future__ import annotations

import base64
import struct
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Send

from ray_lora.adapters.peft_folder import CONFIG
from ray_lora.errors import AdapterError, AdapterNotFoundError, DataError, RayLoraError
from ray_lora.recipe import Json
from ray_lora.serving.changes import publish, withdraw
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http import faults, schemas
from ray_lora.serving.http.api_page import add_api_page
from ray_lora.serving.http.asking import chosen, headers_of, ref_of, refs_of, user_of
from ray_lora.serving.http.files import FileBodies
from ray_lora.serving.http.guard import Guard
from ray_lora.serving.http.hub import add_hub
from ray_lora.serving.http.json_bodies import Route
from ray_lora.serving.http.limits import BodyLimit
from ray_lora.serving.http.openai import add_openai
from ray_lora.serving.http.page import add_page
from ray_lora.serving.http.people import served_by
from ray_lora.serving.http.pouring import WhileThere
from ray_lora.serving.http.relay import ElsewhereError, asked_of, pass_on, response_of, wants_parts
from ray_lora.serving.http.request_id import RequestId
from ray_lora.serving.http.sent_rows import add_forgetting, add_rows
from ray_lora.serving.http.several import answer_each
from ray_lora.serving.http.speech import TRANSCRIPTIONS, add_speech
from ray_lora.serving.names import BASE
from ray_lora.store import Entry
from ray_lora.store.refs import CHAMPION, check_name
from ray_lora.tasks import task_of
from ray_lora.tasks.rows import answering, may_have
from ray_lora.tasks.scored import Scored


def create_app(endpoint: Endpoint, echo_ids: bool = True) -> FastAPI:
    """The ASGI app that answers for an endpoint; `echo_ids=False` where the server sends request ids back itself."""
    app = FastAPI(
        title="ray_lora",
        description="Many LoRA adapters on one shared base",
        responses=schemas.ERRORS,
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = Route
    faults.install(app, endpoint.keys)
    app.add_middleware(FileBodies, most=endpoint.args.max_inputs)
    app.add_middleware(
        BodyLimit,
        largest=endpoint.args.max_body_bytes,
        larger={TRANSCRIPTIONS: endpoint.args.max_sound_bytes},
        within_s=endpoint.args.body_s,
    )
    app.add_middleware(Guard, args=endpoint.args, keys=endpoint.keys)
    app.add_middleware(RequestId, echo=echo_ids)

    async def elsewhere(request: Request, error: Exception) -> Response:
        assert isinstance(error, ElsewhereError)
        base, asked, peers = error.base, await asked_of(request, error.version), endpoint.names.peers

        async def relayed(send: Send) -> None:
            try:
                if wants_parts(asked):
                    await pass_on(peers.pour(base, asked), send)
                    return
                response = response_of(await peers.ask(base, asked))
            except RayLoraError as refused:
                response = faults.of(refused)
            await response(request.scope, request.receive, send)

        return WhileThere(relayed)

    app.add_exception_handler(ElsewhereError, elsewhere)
    _add_answers(app, endpoint)
    add_openai(app, endpoint)
    add_hub(app, endpoint)
    add_speech(app, endpoint)
    _add_feedback(app, endpoint)
    add_rows(app, endpoint)
    add_forgetting(app, endpoint)
    _add_models(app, endpoint)
    _add_loading(app, endpoint)
    add_page(app, endpoint)
    add_api_page(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        endpoint.check()
        return {"status": "ok", "base": endpoint.base_id}

    @app.get("/v1/status")
    async def status(request: Request) -> dict[str, Json]:
        """What is in a replica's slots, what waits, counters since its start: of the one that answers, and `others`."""
        endpoint.keys.of(request.headers).check_admin()
        mine, everyone = await endpoint.status(), await endpoint.names.peers.tell(None, "status")
        return {**mine, "others": [told for told in everyone if told["replica"] != mine["replica"]]}

    for route in [route for route in app.routes if isinstance(route, Route) and "GET" in (route.methods or ())]:
        app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
    return app


def _add_answers(app: FastAPI, endpoint: Endpoint) -> None:
    @app.post(
        "/v1/predict", response_model=schemas.PredictResponse | schemas.SeveralResponse, openapi_extra=schemas.FORM
    )
    async def predict(body: schemas.PredictRequest, request: Request) -> Response:
        inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        if isinstance(body.model, list):
            if body.person is not None or body.group is not None:
                raise DataError("model names several adapters; person and group go with one")
            refs = refs_of(endpoint, body.model, request)
            return await answer_each(endpoint, refs, inputs, body.parameters, body.user, request)
        ref, served = await served_by(endpoint, ref_of(endpoint, body.model, request), body.person, body.group, request)
        choice = await endpoint.names.choose(ref, user_of(body.user, request), chosen(request))
        answer = await endpoint.predict(choice, inputs, body.parameters, request.state.request_id)
        entry = answer.entry
        content = {
            "model": entry.name,
            "version": entry.version,
            "sha256": entry.sha256,
            "task": answer.task.spec.type,
            "predictions": answer.predictions,
        }
        return JSONResponse(content | ({"served_by": served} if served else {}), headers=headers_of(entry))

    @app.post("/classify", response_model=schemas.ClassifyResponse)
    @app.post("/v1/classify", response_model=schemas.ClassifyResponse)
    async def classify(body: schemas.ClassifyRequest, request: Request) -> Response:
        inputs = [body.input] if isinstance(body.input, str) else body.input
        ref = ref_of(endpoint, body.model, request)
        choice = await endpoint.names.choose(ref, user_of(body.user, request), chosen(request))
        entry = choice.entry
        if entry.task is not None and not issubclass(task_of(entry.task), Scored):
            raise DataError(f"{entry.ref} does {entry.task.type}; /classify is for classification, use /v1/predict")
        answer = await endpoint.predict(choice, inputs, Scored.full, request.state.request_id)
        assert isinstance(answer.task, Scored)  # the only kind that a folder without a card may stand for
        data = [_class(index, ranked, answer.task) for index, ranked in enumerate(answer.predictions)]
        content = {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": ref,
            "version": answer.entry.version,
            "sha256": answer.entry.sha256,
            "data": data,
            "usage": _usage(answer.tokens),
        }
        return JSONResponse(content, headers=headers_of(answer.entry))

    @app.post("/v1/embeddings", response_model=schemas.EmbeddingsResponse)
    async def embeddings(body: schemas.EmbeddingsRequest, request: Request) -> Response:
        ref = ref_of(endpoint, body.model, request)
        if ref in endpoint.names.peers.bases:
            raise ElsewhereError(ref)
        if not endpoint.names.is_base(ref):
            entry = await endpoint.names.resolve(ref)
            raise DataError(
                f"{entry.ref} does not give embeddings; the base does: set model to {endpoint.base_id!r} or {BASE!r}"
            )
        if body.dimensions is not None:
            raise DataError("dimensions cannot be chosen: these embeddings have the base's hidden size")
        vectors, tokens = await endpoint.embed([body.input] if isinstance(body.input, str) else body.input)
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        return JSONResponse({"object": "list", "data": data, "model": endpoint.base_id, "usage": _usage(tokens)})


def _add_feedback(app: FastAPI, endpoint: Endpoint) -> None:
    @app.post("/v1/feedback", response_model=schemas.FeedbackResponse)
    async def feedback(body: schemas.FeedbackRequest, request: Request) -> schemas.FeedbackResponse:
        """Say of an answer whether, or how far, it was good; of several feedbacks on one answer the last one counts."""
        key = endpoint.keys.of(request.headers)
        arm = await endpoint.results.find(body.id)
        key.check_adapter(arm.name)
        await endpoint.results.feedback(arm, body.id, body.value, user_of(body.user, request))
        return schemas.FeedbackResponse(id=body.id, model=arm.name, version=arm.version, variant=arm.variant)


def _add_models(app: FastAPI, endpoint: Endpoint) -> None:
    def card(entry: Entry, name: str, versions: Sequence[int], home: str | None) -> schemas.ModelCard:
        shown = entry.task.describe() if entry.task else {}
        task = task_of(entry.task) if entry.task else None
        known = {
            "id": name,
            "created": endpoint.created,
            "root": entry.ref,
            "parent": home or entry.base,
            "task": entry.task.type if entry.task else None,
            "input": list(task.columns[task.input].kinds) if task else [],
            "columns": list(answering(task)) if task else [],
            "optional": list(may_have(task)) if task else [],
            "full": dict(task.full) if task else {},
            "shown": list(shown),
            "version": entry.version,
            "aliases": list(entry.aliases),
            "versions": list(versions),
            "metrics": entry.metrics,
            "sha256": entry.sha256 or None,
            "split": entry.traffic.split,
            "shadow": entry.traffic.shadow,
            "share": None if entry.traffic.shadow is None else entry.traffic.share,
            "served": home is not None,
        }
        return schemas.ModelCard.model_validate(shown | known)

    def base_card(base: str, fingerprint: str) -> schemas.ModelCard:
        return schemas.ModelCard(id=base, created=endpoint.created, root=base, parent=None, sha256=fingerprint)

    @app.get("/v1/models")
    async def models(request: Request) -> schemas.ModelList:
        """The bases, and the adapters that the key is for; of single persons' nobody gets a list."""
        key = endpoint.keys.of(request.headers)
        versions: dict[str, list[Entry]] = {}
        for entry in await endpoint.registry.list():
            if not entry.traffic.withdrawn and key.may_use(entry.name):
                versions.setdefault(entry.name, []).append(entry)
        cards = [base_card(endpoint.base_id, endpoint.machine.base.fingerprint)]
        cards += [base_card(base, await endpoint.names.fingerprint_of(base)) for base in endpoint.names.peers.bases]
        for name, entries in versions.items():
            default = next((entry for entry in entries if CHAMPION in entry.aliases), entries[-1])
            home = await endpoint.names.home_of(default)
            cards.append(card(default, name, [entry.version for entry in entries], home))
        return schemas.ModelList(data=cards)

    @app.get("/v1/models/{ref:path}")
    async def model(ref: str, request: Request) -> schemas.ModelCard:
        key = endpoint.keys.of(request.headers)
        if endpoint.names.is_base(ref):
            return base_card(endpoint.base_id, endpoint.machine.base.fingerprint)
        if ref in endpoint.names.peers.bases:
            return base_card(ref, await endpoint.names.fingerprint_of(ref))
        key.check_adapter(ref.partition("@")[0])
        entry = await endpoint.names.resolve(ref)
        versions = [other.version for other in await endpoint.registry.versions(entry.name)]
        return card(entry, ref, versions, endpoint.base_id)


def _add_loading(app: FastAPI, endpoint: Endpoint) -> None:
    @app.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
    async def load_lora_adapter(body: schemas.LoadRequest, request: Request) -> str:
        endpoint.keys.of(request.headers).check_admin()
        name = body.lora_name.partition("@")[0]
        if body.lora_path is not None:
            check_name(body.lora_name)
            held = [entry for entry in await endpoint.registry.versions(name) if not entry.traffic.withdrawn]
            if held and not body.load_inplace and body.if_version is None:
                raise AdapterError(f"The lora adapter {name!r} has already been loaded; set load_inplace to replace it")
            await publish(endpoint.names, name, _folder(body.lora_path), body.pinned, body.if_version)
        else:
            await withdraw(endpoint.names, name, False, body.if_version)
            home = await endpoint.names.homed(await endpoint.names.entry_of(body.lora_name))
            await endpoint.names.peers.tell(home, "prewarm", body.lora_name, body.pinned)
        return f"Success: LoRA adapter '{name}' added successfully."

    @app.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
    async def unload_lora_adapter(body: schemas.UnloadRequest, request: Request) -> str:
        endpoint.keys.of(request.headers).check_admin()
        entry = await endpoint.names.entry_of(body.lora_name)
        await withdraw(endpoint.names, entry.name, True, body.if_version)
        return f"Success: LoRA adapter '{entry.name}' removed successfully."

    @app.post("/v1/refresh")
    async def refresh(request: Request) -> dict[str, str]:
        """Ask the store anew from here on: what it said before this call is not used for any later request."""
        endpoint.keys.of(request.headers).check_admin()
        await endpoint.names.peers.tell(None, "renew")
        return {"status": "ok"}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def _class(index: int, ranked: Json, task: Scored) -> dict[str, Json]:
    probs = task.probabilities(ranked)
    return {"index": index, "label": ranked[0]["label"], "probs": probs, "num_classes": len(probs)}


def _vector(vector: list[float], encoding: str) -> list[float] | str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if encoding == "base64" else vector


def _folder(path: str) -> Path:
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise AdapterNotFoundError(f"{path[:200]!r} holds no {CONFIG}; give a PEFT folder of the server's machine")
    return folder
