"""What a request says beside its body: which adapter, for whom, by which split; what an answer says of its adapter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastapi import Request

from ray_lora.errors import DataError
from ray_lora.recipe import Json
from ray_lora.serving.endpoint import Answer, Endpoint
from ray_lora.store import Entry

_HEADER = "serve_multiplexed_model_id"
_SHOWN = 80  # letters of a name that a message repeats


def ref_of(endpoint: Endpoint, model: str | None, request: Request) -> str:
    """The adapter that the body or the header names (both may, when they agree), if the request's key is for it."""
    key = endpoint.keys.of(request.headers)
    named = {value for key, value in request.headers.items() if key.lower().replace("-", "_") == _HEADER}
    if model is not None:
        named.add(model)
    if len(named) > 1:
        raise DataError(f"model and the header {_HEADER} name different adapters ({_some(named)}); name one")
    if not named:
        raise DataError(f"no adapter is named; set model (or the header {_HEADER}) to one of /v1/models")
    ref = named.pop()
    if endpoint.names.is_base(ref) or ref in endpoint.names.peers.bases:
        key.check_base()
    else:
        key.check_adapter(ref.partition("@")[0])
    return ref


def refs_of(endpoint: Endpoint, models: Sequence[str], request: Request) -> list[str]:
    """The several adapters that the body names, if the request's key is for all of them."""
    key = endpoint.keys.of(request.headers)
    if any(name.lower().replace("-", "_") == _HEADER for name in request.headers):
        raise DataError(f"model names several adapters, and the header {_HEADER} names one; leave the header out")
    most = endpoint.args.max_adapters
    if not 1 <= len(models) <= most:
        raise DataError(f"model names {len(models)} adapters; one request may name from 1 to {most}")
    for at, ref in enumerate(models):
        key.check_adapter(ref.partition("@")[0])
        if ref in models[:at]:
            raise DataError(f"model names {ref[:_SHOWN]!r} twice; name it once")
    return list(models)


def _some(names: Iterable[str]) -> str:
    return ", ".join(name[:_SHOWN] for name in sorted(names))


def chosen(request: Request) -> int | None:
    """The version that a split has chosen where this request came in; never a client's word."""
    version: int | None = request.scope["state"].get("version")
    return version


def user_of(given: str | None, request: Request) -> str | None:
    """Whom a split keeps on one version: the body's `user` or the header `x-user`."""
    header = request.headers.get("x-user")
    if given is not None and header is not None and given != header:
        raise DataError(
            f"user and the header x-user name different users ({given[:_SHOWN]!r}, {header[:_SHOWN]!r}); name one"
        )
    return header if given is None else given


def headers_of(entry: Entry) -> dict[str, str]:
    return {"x-adapter": entry.ref, "x-adapter-sha256": entry.sha256}


def answered_of(answer: Answer) -> dict[str, Json]:
    """One adapter's answers, as /v1/predict says them of several."""
    entry = answer.entry
    return {
        "model": entry.name,
        "version": entry.version,
        "task": answer.task.spec.type,
        "sha256": entry.sha256,
        "predictions": answer.predictions,
    }
