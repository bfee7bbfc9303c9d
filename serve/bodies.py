"""Reading request bodies: capped while they arrive, as JSON or as a multipart form, into one schema.

Files and other values are told apart here: a form's files come back as `Upload`s under their field names, everything
else must match the schema.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

import anyio
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import Message

from omnifarm.errors import RequestError
from serve.errors import TooLargeError, TooSlowError, UnsupportedMediaError, explain
from serve.json_text import parse_object, require_unicode

Body = TypeVar("Body", bound=BaseModel)
JSON = "application/json"
"""Media type of JSON bodies."""
FORM = "multipart/form-data"
"""Media type of forms."""
ARRIVAL_S = 120.0
"""Seconds a body may take to arrive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """One file of a form."""

    name: str
    """The file's own name, as the client gave it."""
    data: bytes
    """Its bytes, not yet looked at."""


async def read_json(
    request: Request, schema: type[Body], *, max_bytes: int, arrival: AbstractContextManager[None]
) -> Body:
    """Read and check a JSON body.

    Args:
        request: Its content type must be `application/json`.
        schema: What the body must hold.
        max_bytes: Larger bodies are refused while they arrive.
        arrival: Held while the body arrives.

    Raises:
        TooLargeError: The body exceeds `max_bytes`.
        TooSlowError: It has not arrived in time.
        UnsupportedMediaError: Another content type.
        RequestError: The body does not parse or does not match the schema.
    """
    _require_kind(request, JSON)
    with arrival:
        raw = await _read_capped(request, max_bytes=max_bytes)
    return checked(schema, parse_object(raw, expected="a JSON object as body"))


async def read_form(
    request: Request,
    schema: type[Body],
    *,
    max_bytes: int,
    max_files: int,
    arrival: AbstractContextManager[None],
) -> tuple[Body, dict[str, list[Upload]]]:
    """Read and check a form.

    Args:
        request: Its content type must be `multipart/form-data`.
        schema: What the fields must hold; a list is a repeated field (`name` or `name[]`).
        max_bytes: Larger bodies are refused while they arrive.
        max_files: Files in all.
        arrival: Held while the body arrives.

    Returns:
        The fields, and the files by field name (`image[]` counts as `image`).

    Raises:
        TooLargeError: The body exceeds `max_bytes`.
        TooSlowError: It has not arrived in time.
        UnsupportedMediaError: Another content type.
        RequestError: The body does not parse or does not match the schema.
    """
    _require_kind(request, FORM)
    with arrival:
        raw = await _read_capped(request, max_bytes=max_bytes)

    async def replay_body() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    values: dict[str, Any] = {}
    files: dict[str, list[Upload]] = {}
    try:
        async with Request(request.scope, replay_body).form(max_files=max_files, max_fields=64) as form:
            for key, value in form.multi_items():
                name = key.removesuffix("[]")
                if isinstance(value, UploadFile):
                    files.setdefault(name, []).append(Upload(name=value.filename or "", data=await value.read()))
                elif _is_list(schema, name):
                    values.setdefault(name, []).append(value)
                else:
                    values[name] = value
    except (MultiPartException, HTTPException) as error:
        reason = error.detail if isinstance(error, HTTPException) else error
        raise RequestError(f"expected a form this server can read, found another: {reason}") from None
    # A form may name a charset of its own, such as UTF-7.
    require_unicode(values)
    return checked(schema, values), files


def checked(schema: type[Body], values: dict[str, Any]) -> Body:
    """Return `values` as `schema`.

    Raises:
        RequestError: They do not match; the message names every field.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        details = [dict(detail) for detail in error.errors()]
        location = details[0].get("loc") if details else None
        field = str(location[0]) if isinstance(location, tuple) and location else None
        raise RequestError(explain(details), field=field) from None


def openapi_json(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that `read_json` reads."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": _inlined(schema)}}}}


def openapi_form(schema: type[BaseModel], *, files: dict[str, str], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The OpenAPI entry of a form that `read_form` reads; `files` maps file fields to their descriptions."""
    document = _inlined(schema)
    for name, description in files.items():
        document["properties"][name] = {"type": "string", "format": "binary", "description": description}
    document["required"] = [*document.get("required", []), *required]
    return {"requestBody": {"required": True, "content": {FORM: {"schema": document}}}}


def _inlined(schema: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema with its definitions put where they are used: references would point outside the operation."""
    document = schema.model_json_schema(ref_template="#/$defs/{model}")
    definitions = document.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in node.items()}
        if isinstance(node, list):
            return [resolve(value) for value in node]
        return node

    resolved: dict[str, Any] = resolve(document)
    return resolved


def _require_kind(request: Request, expected: str) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != expected:
        raise UnsupportedMediaError(
            f"expected a body of type {expected}, found {kind[:80] or 'none'!r}", found=kind[:80]
        )


async def _read_capped(request: Request, *, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    raw = bytearray()
    try:
        with anyio.fail_after(ARRIVAL_S):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise TooSlowError(
            f"expected the whole body within {ARRIVAL_S:g} s, found {len(raw)} bytes by then; send smaller pictures, or over a "
            "faster line"
        ) from None
    return bytes(raw)


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"expected a body of at most {max_bytes} bytes, found more; send smaller pictures", limit=max_bytes
    )


def _is_list(schema: type[BaseModel], name: str) -> bool:
    field = schema.model_fields.get(name)
    if field is None:
        return False
    options = (field.annotation, *get_args(field.annotation))
    return any(get_origin(option) in (list, tuple) for option in options)
