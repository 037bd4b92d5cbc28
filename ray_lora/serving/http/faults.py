"""Every failure as `{"error": {"message", "type", "param", "code"}}` with its HTTP status. Knows no routes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ray_lora.errors import AdapterError, AdapterNotFoundError, BaseModelError, CapacityError, RayLoraError
from ray_lora.inference.prompts import TooLongError
from ray_lora.recipe import Json
from ray_lora.serving.gate import OverloadedError
from ray_lora.serving.http.keys import KeyMissingError, KeyScopeError
from ray_lora.serving.http.relay import BaseAwayError
from ray_lora.serving.inputs import TooManyInputsError
from ray_lora.serving.trials.results import UnknownRequestError
from ray_lora.store import BeingWrittenError, StoreAwayError
from ray_lora.store.expected import VersionConflictError

_logger = logging.getLogger(__name__)
_TYPES = {
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    429: "RateLimitError",
    500: "InternalServerError",
}


def fault(
    status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The one shape of an error."""
    kind = _TYPES.get(status, "ServiceUnavailableError" if status >= 500 else "BadRequestError")
    body = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": body}, status, headers)


def about(ref: str | None, said: str) -> str:
    """A message that names the adapter it is about."""
    return said if ref is None or ref in said else f"{ref}: {said}"


def body_of(error: RayLoraError) -> Json:
    """The answer to an error that a user caused, where the answer has begun and its status is said."""
    return json.loads(bytes(of(error).body))


def of(error: RayLoraError, ref: str | None = None) -> JSONResponse:
    """The answer to an error that a user caused.

    Args:
        ref: the adapter, where a request names several.
    """
    said = about(ref, str(error))
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
    if isinstance(error, TooManyInputsError):
        return fault(413, said, "too_large", "inputs")
    if isinstance(error, TooLongError):
        return fault(400, said, "context_length_exceeded")
    if isinstance(error, (AdapterError, BaseModelError)):
        return fault(400, said, "invalid_adapter", "model")
    return fault(400, said, "invalid_value")


def install(app: FastAPI) -> None:
    """Make every failure of the app one of these."""

    async def user_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RayLoraError)
        return of(error)

    async def malformed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return fault(400, f"the body is not JSON: {first['ctx']['error']}", "invalid_json")
        return fault(400, f"{where or 'body'}: {first['msg']}", "invalid_value", where or None)

    async def unrouted(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_value")
        said = f"{request.method} {request.url.path}: {error.detail}; see /docs"
        return fault(error.status_code, said, code, headers=error.headers)

    async def broken(request: Request, error: Exception) -> JSONResponse:
        _logger.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        named = request.state.id_header  # this answer does not pass through the middleware
        return fault(500, "the endpoint failed; its log says why", "internal_error", headers=named)

    app.add_exception_handler(RayLoraError, user_error)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(Exception, broken)
