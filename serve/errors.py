"""Which HTTP status an error has, and the JSON that every error becomes. Codes are chosen here and nowhere else.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

The shape is OpenAI's, so that its clients raise the right exception and know what may be tried again.
"""

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from omnifarm.errors import (
    ArtifactError,
    ConceptError,
    ConfigError,
    FarmError,
    NotFoundError,
    OmniFarmError,
    OverloadedError,
    RequestError,
    ServingError,
    StoreError,
    UnknownConceptError,
)
from omnifarm.logs import event

_LOG = logging.getLogger("omnifarm.serve")
RETRY_AFTER_S = 2.0
"""Seconds a client should wait where nobody knows better: about the time of one small picture."""


class TooLargeError(RequestError):
    """The body or the picture is larger than this server reads."""


class TooSlowError(RequestError):
    """The body has not arrived in time."""


class UnsupportedMediaError(RequestError):
    """The body or the picture has a format this server does not read."""


class UnauthenticatedError(ServingError):
    """Nobody knows who is calling."""


class ForbiddenError(ServingError):
    """The caller is known and may not do this."""


class MissingError(ServingError):
    """The caller has no such file, job or model, whoever else may."""


class ConflictError(ServingError):
    """Something of the same name is under way."""


class RateLimitError(ServingError):
    """The tenant asks faster than it may; `retry_after_s` says when to come back."""


class QuotaError(ServingError):
    """The tenant has as much as it may have; waiting does not help."""


STATUS: tuple[tuple[type[OmniFarmError], int, str, str], ...] = (
    (UnauthenticatedError, 401, "authentication_error", "invalid_api_key"),
    (ForbiddenError, 403, "permission_error", "insufficient_permissions"),
    (UnknownConceptError, 404, "not_found_error", "concept_not_found"),
    (MissingError, 404, "not_found_error", "not_found"),
    (NotFoundError, 404, "not_found_error", "not_found"),
    (ConflictError, 409, "conflict_error", "conflict"),
    (ArtifactError, 409, "conflict_error", "artifact_unusable"),
    (TooSlowError, 408, "invalid_request_error", "request_timeout"),
    (TooLargeError, 413, "invalid_request_error", "too_large"),
    (UnsupportedMediaError, 415, "invalid_request_error", "unsupported_media_type"),
    (RateLimitError, 429, "rate_limit_error", "rate_limit_exceeded"),
    (QuotaError, 429, "rate_limit_error", "insufficient_quota"),
    (OverloadedError, 503, "overloaded_error", "overloaded"),
    (StoreError, 503, "overloaded_error", "store_unavailable"),
    (RequestError, 422, "invalid_request_error", "invalid_value"),
    (ConceptError, 422, "invalid_request_error", "invalid_concept"),
    (ConfigError, 422, "invalid_request_error", "invalid_value"),
    (FarmError, 409, "conflict_error", "job_state"),
)
"""Error, status, `type` and `code`; the first match wins. An error that is not listed is our own and gives 500."""

_HTTP_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def status_of(error: OmniFarmError) -> int:
    """The HTTP status of an error of ours."""
    return next((status for kind, status, _, _ in STATUS if isinstance(error, kind)), 500)


def body_of(error: OmniFarmError) -> dict[str, Any]:
    """The JSON of an error of ours; the facts behind the message stand beside it.

    A store's own words may hold keys and hosts: they are for the operator.
    """
    if isinstance(error, NotFoundError):
        return _body("there is nothing of that name", type_="not_found_error", code="not_found")
    if isinstance(error, StoreError):
        return _body("the store does not answer; try again", type_="overloaded_error", code="store_unavailable")
    for kind, _, type_, code in STATUS:
        if isinstance(error, kind):
            facts = {
                name: value
                for name, value in error.facts.items()
                if isinstance(value, str | int | float | bool | list) and name != "field"
            }
            return _body(error.message, type_=type_, code=code, param=error.facts.get("field"), facts=facts)
    return crash_body()


def report(error: OmniFarmError) -> dict[str, Any]:
    """Return the JSON of an error of ours, and log what it keeps from the client, or that a client was sent away."""
    status = status_of(error)
    if status == 500:
        _LOG.error("request_crashed", exc_info=error)
    elif isinstance(error, StoreError) and status == 503:
        event(_LOG, "store_failed", level=logging.ERROR, reason=error.message)
    elif status == 503:
        event(_LOG, "request_refused", error=type(error).__name__, status=status)
    return body_of(error)


def install(api: FastAPI) -> None:
    """Make `api` answer every error, its own and ours, with the same JSON; what is neither, `Edge` answers."""
    api.add_exception_handler(OmniFarmError, _ours)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)


def explain(details: list[dict[str, Any]]) -> str:
    """One sentence for each problem pydantic found: where, what."""
    parts = []
    for detail in details:
        location = detail.get("loc")
        where = ".".join(str(part) for part in location if part != "body") if isinstance(location, tuple | list) else ""
        parts.append(f"{where or 'body'}: {detail.get('msg', 'invalid')}")
    return "; ".join(parts) or "the request does not match its schema"


def headers_of(error: OmniFarmError) -> dict[str, str]:
    """Headers that tell a client what to do next."""
    status = status_of(error)
    if status == 401:
        return {"WWW-Authenticate": 'Bearer realm="omnifarm"'}
    if isinstance(error, QuotaError):
        # OpenAI's clients try every 429 again unless they are told.
        return {"x-should-retry": "false"}
    if status in (429, 503) or "retry_after_s" in error.facts:
        return {"Retry-After": str(max(1, math.ceil(float(error.facts.get("retry_after_s", RETRY_AFTER_S)))))}
    return {}


async def _ours(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OmniFarmError)
    return JSONResponse(report(error), status_code=status_of(error), headers=headers_of(error))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    details = [dict(one) for one in error.errors()] if isinstance(error, RequestValidationError) else []
    return JSONResponse(
        _body(explain(details), type_="invalid_request_error", code="invalid_value", facts={"problems": len(details)}),
        status_code=422,
    )


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    type_ = _HTTP_TYPES.get(error.status_code, "invalid_request_error")
    body = _body(str(error.detail), type_=type_, code=f"http_{error.status_code}")
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


def crash_body() -> dict[str, Any]:
    """The JSON of a mistake of ours: the log keeps the trace, the client learns nothing of our insides."""
    return _body(
        "the server made a mistake; the operator's log has the details", type_="server_error", code="internal_error"
    )


def _body(
    message: str, *, type_: str, code: str, param: object = None, facts: dict[str, Any] | None = None
) -> dict[str, Any]:
    facts = {name: value for name, value in (facts or {}).items() if name not in ("message", "type", "param", "code")}
    known = param if isinstance(param, str) else None
    return {"error": {"message": message, "type": type_, "param": known, "code": code, **facts}}
