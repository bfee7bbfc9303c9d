"""Reading request bodies: capped before they are parsed, as JSON or as a multipart form, into one schema."""

import base64
import binascii
import json
import re
from typing import Any, TypeVar, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import Message

from omnifarm.errors import RequestError
from serve.errors import TooLargeError, UnsupportedMediaError, explain

Body = TypeVar("Body", bound=BaseModel)
_DATA_URL = re.compile(r"\Adata:[\w.+-]+/[\w.+-]+;base64,")


async def read_body(request: Request, schema: type[Body], *, max_bytes: int) -> tuple[Body, bytes | None]:
    """Read and check a request's body.

    Args:
        request: Its content type must be `application/json` or `multipart/form-data`.
        schema: What the body must hold. A form gives the same fields; `image` is a file, a list is a repeated field.
        max_bytes: Larger bodies are refused while they arrive.

    Returns:
        The body, and the bytes of its picture if it has one, not yet looked at.

    Raises:
        TooLargeError: The body exceeds `max_bytes`.
        UnsupportedMediaError: Another content type.
        RequestError: The body does not parse or does not match the schema.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise UnsupportedMediaError(
            f"expected a body of type application/json or multipart/form-data, found {kind or 'none'!r}",
            found=kind,
        )
    raw = await _read_capped(request, max_bytes=max_bytes)
    if kind == "application/json":
        values, picture = _from_json(raw)
    else:
        values, picture = await _from_form(request, raw, schema=schema)
    try:
        body = schema.model_validate(values)
    except ValidationError as error:
        raise RequestError(explain([dict(detail) for detail in error.errors()])) from None
    return body, picture


def openapi_body(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that `read_body` reads."""
    plain = schema.model_json_schema()
    form = json.loads(json.dumps(plain))
    if "image" in form["properties"]:
        form["properties"]["image"] = {"type": "string", "format": "binary", "description": "The picture as a file."}
    content = {"application/json": {"schema": plain}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


async def _read_capped(request: Request, *, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(raw)


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"expected a body of at most {max_bytes} bytes, found more; send a smaller picture", limit=max_bytes
    )


def _from_json(raw: bytes) -> tuple[dict[str, Any], bytes | None]:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        raise RequestError("expected a JSON object as body, found something that does not parse") from None
    if not isinstance(values, dict):
        raise RequestError(f"expected a JSON object as body, found a {type(values).__name__}")
    picture = values.get("image")
    if not isinstance(picture, str):
        return values, None
    try:
        decoded = base64.b64decode(_DATA_URL.sub("", picture), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("expected base64 in image, found something else", field="image") from None
    return {**values, "image": ""}, decoded


async def _from_form(request: Request, raw: bytes, *, schema: type[BaseModel]) -> tuple[dict[str, Any], bytes | None]:
    async def replay_body() -> Message:
        return {"type": "http.request", "body": raw, "more_body": False}

    values: dict[str, Any] = {}
    picture: bytes | None = None
    try:
        async with Request(request.scope, replay_body).form(max_files=1, max_fields=64) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != "image":
                        raise RequestError(f"expected the file under the name image, found {name!r}", field=name)
                    picture = await value.read()
                    values["image"] = ""
                elif _is_list(schema, name):
                    values.setdefault(name, []).append(value)
                else:
                    values[name] = value
    except (MultiPartException, HTTPException) as error:
        raise RequestError(f"expected a multipart form, found one that does not parse: {error}") from None
    if picture is None and "image" in values:
        raise RequestError("expected image as a file in a form, found text; use JSON for base64", field="image")
    return values, picture


def _is_list(schema: type[BaseModel], name: str) -> bool:
    field = schema.model_fields.get(name)
    if field is None:
        return False
    options = getattr(field.annotation, "__args__", (field.annotation,))
    return any(get_origin(option) in (list, tuple) for option in (field.annotation, *options))
