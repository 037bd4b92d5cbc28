"""Every failure as `{"error": {"message", "type", "param", "code"}}` with its HTTP status. Knows no routes."""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ray_lora.errors import AdapterError, AdapterNotFoundError, BaseModelError, CapacityError, RayLoraError
from ray_lora.inference.prompts import TooLongError
from ray_lora.recipe import Json
from ray_lora.serving.gate import OverloadedError
from ray_lora.serving.http.keys import Key, KeyMissingError, Keys, KeyScopeError
from ray_lora.serving.http.relay import BaseAwayError
from ray_lora.serving.inputs import TooLargeError, TooManyInputsError
from ray_lora.serving.trials.results import UnknownRequestError
from ray_lora.store import BeingWrittenError, StoreAwayError
from ray_lora.store.expected import VersionConflictError
from ray_lora.store.refs import UnknownNameError

_logger = logging.getLogger(__name__)
_LONGEST = 400  # letters of a message
_FIELD = 80  # letters of a field's or a path's name in one
_PATHS = re.compile(r"(?<![\w:/.…])/(?!v1/|models/|-/)(?:[^\s'\"/,;:()]+/)+([^\s'\"/,;:()]*)")
_STORES = re.compile(r"(?:file|sqlite|s3|gs|postgresql|mysql|mssql)[+\w]*:/{1,4}[^\s'\",;()]*")
_FULL = "No space left on device"  # which libraries say that raise errors of their own
_TYPES = {
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    429: "RateLimitError",
    500: "InternalServerError",
}


def plain(message: str) -> str:
    """A message as a client may see it: short, and of places on the server's machine the last part alone."""
    message = _STORES.sub("the store", _PATHS.sub(r"…/\1", message))
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST - 1]}…"


def fault(
    status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The one shape of an error."""
    kind = _TYPES.get(status, "ServiceUnavailableError" if status >= 500 else "BadRequestError")
    body = {"message": plain(message), "type": kind, "param": param, "code": code}
    return JSONResponse({"error": body}, status, headers)


def about(ref: str | None, said: str) -> str:
    """A message that names the adapter it is about."""
    return said if ref is None or ref in said else f"{ref}: {said}"


def body_of(error: RayLoraError) -> Json:
    """The answer to an error that a user caused, where the answer has begun and its status is said."""
    return json.loads(bytes(of(error).body))


def of(error: RayLoraError, ref: str | None = None, key: Key | None = None) -> JSONResponse:
    """The answer to an error that a user caused.

    Args:
        ref: the adapter, where a request names several.
        key: whose request it is; of names that it is not for nothing is said.
    """
    if is_full(error):
        return full()
    said = about(ref, _said(error, key))
    if isinstance(error, OverloadedError):
        code = "rate_limited" if error.status == 429 else "overloaded"
        return fault(error.status, said, code, headers={"retry-after": str(error.retry_after_s)})
    if isinstance(error, KeyMissingError):
        return fault(401, said, "invalid_api_key", headers={"www-authenticate": "Bearer"})
    if isinstance(error, KeyScopeError):
        return fault(403, said, "forbidden")
    if isinstance(error, (StoreAwayError, BaseAwayError, BeingWrittenError, CapacityError)):
        return fault(503, said, "unavailable", headers={"retry-after": "1"})
    if isinstance(error, AdapterNotFoundError):
        return fault(404, said, "model_not_found", "model")
    if isinstance(error, VersionConflictError):
        there = {} if error.ref is None else {"x-adapter": error.ref}
        return fault(409, said, "version_conflict", "if_version", there)
    if isinstance(error, UnknownRequestError):
        return fault(404, said, "request_not_found", "id")
    if isinstance(error, (TooManyInputsError, TooLargeError)):
        return fault(413, said, "too_large", "inputs")
    if isinstance(error, TooLongError):
        return fault(400, said, "context_length_exceeded")
    if isinstance(error, (AdapterError, BaseModelError)):
        return fault(400, said, "invalid_adapter", "model")
    return fault(400, said, "invalid_value")


def is_full(error: BaseException) -> bool:
    """Whether it came to be because a disk has no room."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)) or _FULL in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def full() -> JSONResponse:
    """The answer where something was to be kept and there is no room; what is there goes on being served."""
    said = "the disk is full, so nothing of this was kept; make room for the store and the results, and send it again"
    return fault(507, said, "disk_full", headers={"retry-after": "30"})


def _said(error: RayLoraError, key: Key | None) -> str:
    """The message, without where the store lies and what else it holds."""
    if isinstance(error, UnknownNameError):
        near = re.search("'(.*)'", error.near)
        return f"{error.name!r} is not in the store{error.near if near and key and key.may_use(near[1]) else ''}"
    if isinstance(error, StoreAwayError):
        return "the store does not answer now, and this is not known from before; try again"
    return str(error)


def install(app: FastAPI, keys: Keys) -> None:
    """Make every failure of the app one of these."""

    async def user_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RayLoraError)
        try:
            key = keys.of(request.headers)
        except KeyMissingError:
            key = None
        return of(error, key=key)

    async def malformed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        told = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]  # no types' names
        where = ".".join(told[1:] if told[:1] == ["body"] else told)
        if first["type"] == "json_invalid":
            return fault(400, f"the body is not JSON: {first['ctx']['error']}", "invalid_json")
        where = where[:_FIELD]
        said = first["msg"].removeprefix("Value error, ")
        return fault(400, f"{where or 'body'}: {said}", "invalid_value", where or None)

    async def unrouted(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_value")
        said = f"{request.method[:_FIELD]} {request.url.path[:_FIELD]}: {error.detail}; see /docs"
        return fault(error.status_code, said, code, headers=error.headers)

    async def unwritable(request: Request, error: Exception) -> JSONResponse:
        if is_full(error):
            return full()
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            said = "the store or the results can only be read now, so nothing of this was kept; try again later"
            return fault(503, said, "unavailable", headers={"retry-after": "30"})
        return await broken(request, error)

    async def broken(request: Request, error: Exception) -> JSONResponse:
        if is_full(error):
            return full()
        _logger.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        named = request.state.id_header  # this answer does not pass through the middleware
        return fault(500, "the endpoint failed; its log says why", "internal_error", headers=named)

    app.add_exception_handler(RayLoraError, user_error)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(OSError, unwritable)
    app.add_exception_handler(Exception, broken)
