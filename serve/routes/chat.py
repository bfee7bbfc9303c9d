"""`POST /v1/chat/completions`."""

import hashlib
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from PIL.Image import Image

from omnifarm.errors import RequestError
from omnifarm.serving.events import Failed, Finished, TextPiece, ThoughtPiece
from omnifarm.serving.requests import Answer, AskRequest
from omnifarm.tenancy import Caller
from serve.bodies import openapi_json, read_json
from serve.errors import report
from serve.idempotency import once
from serve.pictures import from_base64, is_data_url
from serve.remote import fetch_picture
from serve.services import Services, Shared, User
from serve.sse import DONE, sse, stream_reply
from serve.wire.base import responses
from serve.wire.chat import ChatBody, ChatReply, Usage, chunk, finish_reason

router = APIRouter(tags=["Ask"])
_MAX_TOKENS = 256


@router.post(
    "/v1/chat/completions",
    response_model=ChatReply,
    responses=responses(404, 409, 413, 415, 422),
    openapi_extra=openapi_json(ChatBody),
)
async def complete(
    request: Request,
    shared: Shared,
    caller: User,
    idempotency_key: str | None = Header(default=None, max_length=255),
) -> Response:
    """Answer a question about pictures, or about a concept as such; as server-sent events with `stream`."""
    body = await read_json(
        request, ChatBody, max_bytes=shared.settings.max_body_bytes, arrival=shared.admission.arrival(caller)
    )
    if body.stream and idempotency_key is not None:
        raise RequestError("expected no Idempotency-Key for a stream, found one; ask again without stream")
    digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    reply_id, created = f"chatcmpl-{secrets.token_hex(12)}", int(shared.clock.now_s())
    if body.stream:
        return await stream_reply(_pieces(shared, caller, body, reply_id=reply_id, created=created))

    async def work() -> dict[str, Any]:
        with shared.admission.place(caller):
            answer = await shared.worker.run(await _asked(shared, caller, body))
        assert isinstance(answer, Answer)
        _count(shared, answer)
        return ChatReply.of(answer, reply_id=reply_id, created=created, model=body.model).model_dump()

    reply = await once(
        idempotency_key,
        route="chat",
        digest=digest,
        store=shared.space(caller).store,
        clock=shared.clock,
        work=work,
    )
    return JSONResponse(reply)


async def _asked(shared: Services, caller: Caller, body: ChatBody) -> AskRequest:
    """Return what the engine is asked; called when the request has its place, as pictures take much memory."""
    asked = shared.engine.door.ask(
        body.question(),
        concepts=body.named_concepts(),
        image=await _images(body, shared),
        max_tokens=body.max_completion_tokens or body.max_tokens or _MAX_TOKENS,
        temperature=body.temperature or None,
        seed=body.seed or 0,
        think=body.think,
        tenant=caller.tenant,
    )
    # The files have become pictures, and are not kept until the answer is there.
    body.messages.clear()
    return asked


async def _images(body: ChatBody, shared: Services) -> list[Image]:
    urls = body.image_urls()
    if len(urls) > shared.settings.max_images:
        raise RequestError(
            f"expected at most {shared.settings.max_images} pictures, found {len(urls)}", field="messages"
        )
    files = [
        from_base64(url, field="messages")
        if is_data_url(url)
        else await fetch_picture(url, settings=shared.settings, client=shared.http)
        for url in urls
    ]
    return [await shared.intake.picture(data, field="messages") for data in files]


async def _pieces(
    shared: Services, caller: Caller, body: ChatBody, *, reply_id: str, created: int
) -> AsyncGenerator[bytes, None]:
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    named: dict[str, Any] = {"reply_id": reply_id, "created": created, "model": body.model, "with_usage": with_usage}
    has_begun = False
    with shared.admission.place(caller):
        asked = await _asked(shared, caller, body)
        async with aclosing(shared.worker.stream(asked)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    if not has_begun:
                        raise event.error
                    yield sse(report(event.error))
                    return
                if not has_begun:
                    has_begun = True
                    yield sse(chunk(**named, delta={"role": "assistant", "content": ""}))
                if isinstance(event, TextPiece):
                    yield sse(chunk(**named, delta={"content": event.text}))
                elif isinstance(event, ThoughtPiece):
                    yield sse(chunk(**named, delta={"reasoning_content": event.text}))
                elif isinstance(event, Finished):
                    answer = event.result
                    assert isinstance(answer, Answer)
                    _count(shared, answer)
                    yield sse(chunk(**named, delta={}, finish_reason=finish_reason(answer)))
                    if with_usage:
                        yield sse(chunk(**named, delta=None, usage=Usage.of(answer)))
    yield DONE


def _count(shared: Services, answer: Answer) -> None:
    shared.metrics.tokens.inc(answer.num_tokens)
    if "first_token_s" in answer.timings:
        shared.metrics.first_token_s.observe(answer.timings["first_token_s"])
