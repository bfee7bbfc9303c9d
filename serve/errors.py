"""Which HTTP status an error has, and the JSON that every error becomes. Codes are chosen here and nowhere else."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from omnifarm.errors import (
    ArtifactError,
    ConceptError,
    ConfigError,
    OmniFarmError,
    OverloadedError,
    RequestError,
    StoreError,
    UnknownConceptError,
)
from omnifarm.logs import event
from serve.schemas import ErrorReply

_LOG = logging.getLogger("omnifarm.serve")
RETRY_AFTER_S = 2
"""Seconds a client should wait when the server is full: about the time of one small picture."""

STATUS: tuple[tuple[type[OmniFarmError], int], ...] = (
    (UnknownConceptError, 404),
    (OverloadedError, 503),
    (RequestError, 422),
    (ConceptError, 422),
    (ConfigError, 422),
    (ArtifactError, 409),
    (StoreError, 503),
)
"""First match wins; an error that is not listed is our own and gives 500."""


class TooLargeError(RequestError):
    """The body or the picture is larger than this server reads."""


class UnsupportedMediaError(RequestError):
    """The body or the picture has a format this server does not read."""


def status_of(error: OmniFarmError) -> int:
    """The HTTP status of an error of ours."""
    if isinstance(error, TooLargeError):
        return 413
    if isinstance(error, UnsupportedMediaError):
        return 415
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def install(api: FastAPI) -> None:
    """Make `api` answer every error, its own and ours, with the same JSON."""
    api.add_exception_handler(OmniFarmError, _ours)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(Exception, _unexpected)


def responses(*codes: int) -> dict[int | str, dict[str, object]]:
    """The OpenAPI entries of an endpoint's error codes."""
    return {code: {"model": ErrorReply} for code in codes}


async def _ours(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, OmniFarmError):
        raise error
    status = status_of(error)
    if status >= 500:
        event(_LOG, "request_failed", level=logging.ERROR, error=type(error).__name__, status=status)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return _reply(status, type(error).__name__, error.message, headers=headers, facts=error.facts)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    details = error.errors() if isinstance(error, RequestValidationError) else []
    return _reply(422, "RequestError", explain(list(details)), facts={"problems": len(details)})


async def _http(_: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = str(error.detail) if isinstance(error, HTTPException) else "internal error"
    return _reply(status, "HttpError", message, headers=getattr(error, "headers", None))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """A mistake of ours: the log keeps the trace, the client learns nothing of our insides."""
    _LOG.error("request_crashed", exc_info=error, extra={"fields": {"path": request.url.path}})
    return _reply(500, "InternalError", "the server made a mistake; the operator's log has the details")


def explain(details: list[dict[str, object]]) -> str:
    """One sentence for each problem pydantic found: where, what."""
    parts = []
    for detail in details:
        location = detail.get("loc")
        where = ".".join(str(part) for part in location if part != "body") if isinstance(location, tuple | list) else ""
        parts.append(f"{where or 'body'}: {detail.get('msg', 'invalid')}")
    return "; ".join(parts) or "the request does not match its schema"


def _reply(
    status: int,
    kind: str,
    message: str,
    *,
    headers: dict[str, str] | None = None,
    facts: dict[str, object] | None = None,
) -> JSONResponse:
    extra = {name: value for name, value in (facts or {}).items() if isinstance(value, str | int | float | bool | list)}
    return JSONResponse({"error": {**extra, "type": kind, "message": message}}, status_code=status, headers=headers)
