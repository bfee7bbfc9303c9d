"""`POST /v1/images/generations` and `POST /v1/images/edits`."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.errors import RequestError
from omnifarm.serving.events import Failed, Finished, PartialImage
from omnifarm.serving.requests import EditRequest, GenerateRequest, Picture
from omnifarm.tenancy import Caller
from serve.bodies import Upload, openapi_form, openapi_json, read_form, read_json
from serve.errors import report
from serve.idempotency import once
from serve.pictures import encode_picture
from serve.services import Services, Shared, User
from serve.sse import sse, stream_reply
from serve.wire.base import responses
from serve.wire.drawing import DrawBody, Drawn, EditBody, GenerateBody, ImagesReply, ImageUsage, TokenDetails

router = APIRouter(tags=["Draw"])
Kind = Literal["image_generation", "image_edit"]
_Mask = tuple[Image.Image, Image.Image]
"""A picture, and where it may change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """A request: how it becomes what the engine is asked, and how the pictures are wanted."""

    kind: Kind
    body: DrawBody
    digest: str
    prepare: Callable[[], Awaitable["_Prepared"]]
    """Called when the request has its place: until then no picture is decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """What the engine is asked."""

    requests: Sequence[GenerateRequest | EditRequest]
    mask: _Mask | None = None


@router.post(
    "/v1/images/generations",
    response_model=ImagesReply,
    responses=responses(404, 409, 413, 415, 422),
    openapi_extra=openapi_json(GenerateBody),
)
async def generate(
    request: Request,
    shared: Shared,
    caller: User,
    idempotency_key: str | None = Header(default=None, max_length=255),
) -> Response:
    """Draw pictures; the reply tells what the concept was asked before and what was drawn."""
    body = await read_json(
        request, GenerateBody, max_bytes=shared.settings.max_body_bytes, arrival=shared.admission.arrival(caller)
    )
    options = SamplingOptions.from_mapping(body.sampling(), base=shared.engine.generation_options)
    requests = [
        shared.engine.door.generate(
            body.prompt,
            concepts=body.named_concepts(),
            size=body.height_width(),
            options=options,
            seed=seed,
            replay=body.replay or "unified",
            think=body.think,
            step_reuse=body.step_reuse,
            partial_every=_partial_every(body, options),
            tenant=caller.tenant,
        )
        for seed in _seeds(body, shared)
    ]

    async def prepare() -> _Prepared:
        return _Prepared(requests=requests)

    task = _Task(kind="image_generation", body=body, digest=_digest(body, []), prepare=prepare)
    return await _draw(shared, caller, task, idempotency_key)


@router.post(
    "/v1/images/edits",
    response_model=ImagesReply,
    responses=responses(404, 409, 413, 415, 422),
    openapi_extra=openapi_form(
        EditBody,
        files={
            "image": "The picture to change (PNG, JPEG or WebP); repeat it for several.",
            "mask": "A PNG of the last picture's shape: it may change where the mask is fully transparent.",
        },
        required=("image",),
    ),
)
async def edit(
    request: Request,
    shared: Shared,
    caller: User,
    idempotency_key: str | None = Header(default=None, max_length=255),
) -> Response:
    """Change a picture as the prompt says; outside a mask it stays as it was."""
    limit = shared.settings.max_images
    body, files = await read_form(
        request,
        EditBody,
        max_bytes=shared.settings.max_body_bytes,
        max_files=limit + 1,
        arrival=shared.admission.arrival(caller),
    )
    if unknown := sorted(set(files) - {"image", "mask"}):
        raise RequestError(f"expected files under the names image and mask, found {unknown[0][:80]!r}", field="image")
    uploads = files.get("image", [])
    if not 1 <= len(uploads) <= limit:
        raise RequestError(f"expected 1 to {limit} files under the name image, found {len(uploads)}", field="image")
    if body.height_width() is not None:
        raise RequestError(
            "expected no size for an edit: the result has that of its source; leave it out", field="size"
        )
    masks = files.get("mask", [])
    if len(masks) > 1:
        raise RequestError(f"expected one mask, found {len(masks)}; it is for the last picture", field="mask")
    options = SamplingOptions.from_mapping(body.sampling(), base=shared.engine.editing_options)
    seeds, digest = _seeds(body, shared), _digest(body, [*uploads, *masks])

    async def prepare() -> _Prepared:
        images = [await shared.intake.picture(upload.data) for upload in uploads]
        # The mask belongs to the picture that is changed, whose size the result has; the others only stand beside it.
        mask = (images[-1], await shared.intake.mask(masks[0].data, size=images[-1].size)) if masks else None
        # The files have become pictures, and are not kept until those are drawn.
        uploads.clear()
        masks.clear()
        requests = [
            shared.engine.door.edit(
                images,
                body.prompt,
                concepts=body.named_concepts(),
                options=options,
                seed=seed,
                replay=body.replay or "off",
                think=body.think,
                step_reuse=body.step_reuse,
                keep_unchanged=body.keeps_unchanged,
                attempts=body.attempts,
                partial_every=_partial_every(body, options),
                tenant=caller.tenant,
            )
            for seed in seeds
        ]
        return _Prepared(requests=requests, mask=mask)

    return await _draw(
        shared, caller, _Task(kind="image_edit", body=body, digest=digest, prepare=prepare), idempotency_key
    )


async def _draw(shared: Services, caller: Caller, task: _Task, idempotency_key: str | None) -> Response:
    if task.body.stream:
        if idempotency_key is not None:
            raise RequestError("expected no Idempotency-Key for a stream, found one; ask again without stream")
        return await stream_reply(_pieces(shared, caller, task))

    async def work() -> dict[str, Any]:
        with shared.admission.place(caller):
            # Each picture counts as a request of its own.
            shared.admission.charge(caller, task.body.n - 1)
            prepared = await task.prepare()
            pictures = await _all(shared, prepared.requests)
            reply = await anyio.to_thread.run_sync(_reply, shared, task, prepared.mask, pictures)
        return reply.model_dump()

    reply = await once(
        idempotency_key,
        route=task.kind,
        digest=task.digest,
        store=shared.space(caller).store,
        clock=shared.clock,
        work=work,
    )
    return JSONResponse(reply)


async def _all(shared: Services, requests: Sequence[GenerateRequest | EditRequest]) -> list[Picture]:
    """Draw several pictures side by side; when one fails, the others stop."""
    running = [asyncio.ensure_future(shared.worker.run(request)) for request in requests]
    try:
        pictures = await asyncio.gather(*running)
    except BaseException:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise
    return [picture for picture in pictures if isinstance(picture, Picture)]


async def _pieces(shared: Services, caller: Caller, task: _Task) -> AsyncGenerator[bytes, None]:
    created = int(shared.clock.now_s())
    has_begun = False
    with shared.admission.place(caller):
        prepared = await task.prepare()
        async with aclosing(shared.worker.stream(prepared.requests[0])) as events:
            async for event in events:
                if isinstance(event, Failed):
                    if not has_begun:
                        raise event.error
                    yield sse(report(event.error), name="error")
                    return
                if isinstance(event, PartialImage):
                    if event.index >= task.body.partial_images:
                        continue
                    has_begun = True
                    data = await anyio.to_thread.run_sync(_file, task.body, prepared.mask, event.image)
                    yield _image_event(
                        task, "partial_image", data, event.image, created, partial_image_index=event.index
                    )
                elif isinstance(event, Finished):
                    has_begun = True
                    assert isinstance(event.result, Picture)
                    reply = await anyio.to_thread.run_sync(_reply, shared, task, prepared.mask, [event.result])
                    values = reply.data[0].model_dump()
                    values |= {"usage": reply.usage.model_dump(), "concepts": reply.concepts}
                    yield _image_event(task, "completed", b"", event.result.image, created, **values)


def _image_event(task: _Task, what: str, data: bytes, image: Image.Image, created: int, **more: Any) -> bytes:
    name = f"{task.kind}.{what}"
    values = {
        "type": name,
        "created_at": created,
        "size": f"{image.width}x{image.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": task.body.output_format,
        "b64_json": base64.b64encode(data).decode(),
        **more,
    }
    return sse(values, name=name)


def _reply(shared: Services, task: _Task, mask: _Mask | None, pictures: Sequence[Picture]) -> ImagesReply:
    for picture in pictures:
        shared.metrics.image_s.labels(task.kind).observe(picture.timings["total_s"])
    first = pictures[0]
    read = sum(picture.num_prompt_tokens for picture in pictures)
    seen = sum(picture.num_image_tokens for picture in pictures)
    drawn = sum(_num_tokens(picture.image, stride=shared.latent_stride) for picture in pictures)
    return ImagesReply(
        created=int(shared.clock.now_s()),
        data=[Drawn.of(picture, data=_file(task.body, mask, picture.image)) for picture in pictures],
        output_format=task.body.output_format,
        size=f"{first.image.width}x{first.image.height}",
        usage=ImageUsage(
            input_tokens=read,
            output_tokens=drawn,
            total_tokens=read + drawn,
            input_tokens_details=TokenDetails(text_tokens=read - seen, image_tokens=seen),
        ),
        concepts=list(first.concepts),
    )


def _num_tokens(image: Image.Image, *, stride: int) -> int:
    return (image.width // stride) * (image.height // stride)


def _file(body: DrawBody, mask: _Mask | None, image: Image.Image) -> bytes:
    if mask is not None:
        source, changes = mask
        resized = source.resize(image.size, Image.Resampling.BICUBIC)
        image = Image.composite(image, resized, changes.resize(image.size, Image.Resampling.NEAREST))
    return encode_picture(image, format=body.output_format, quality=body.output_compression)


def _seeds(body: DrawBody, shared: Services) -> range:
    if body.n > shared.settings.max_drawings:
        raise RequestError(f"expected n of at most {shared.settings.max_drawings}, found {body.n}", field="n")
    if body.stream and body.n > 1:
        raise RequestError(f"expected n of 1 for a stream, found {body.n}; ask for each on its own", field="n")
    return range(body.seed, body.seed + body.n)


def _partial_every(body: DrawBody, options: SamplingOptions) -> int:
    """How many steps lie between two pictures on the way; 0 for none."""
    if not body.stream or not body.partial_images:
        return 0
    return max(1, options.num_timesteps // (body.partial_images + 1))


def _digest(body: DrawBody, uploads: Sequence[Upload]) -> str:
    parts = [hashlib.sha256(upload.data).hexdigest() for upload in uploads]
    return hashlib.sha256(json.dumps([body.model_dump(mode="json"), parts], sort_keys=True).encode()).hexdigest()
