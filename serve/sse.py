"""Server-sent events: how streams are written."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any

from fastapi.responses import StreamingResponse

DONE = b"data: [DONE]\n\n"
"""Ends a chat stream."""
KEEP_ALIVE = b": waiting\n\n"
"""A comment that keeps the connection open."""


def sse(values: dict[str, Any], *, name: str | None = None) -> bytes:
    """Return one event."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode()


async def stream_reply(
    pieces: AsyncGenerator[bytes, None], *, place: AbstractContextManager[None] | None = None
) -> StreamingResponse:
    """Return the response that sends `pieces` as they come; proxies are told not to hold them back.

    Args:
        pieces: At least one. The first is waited for, so that a refusal still has its own status.
        place: Held from now until the stream has ended or the client has left.
    """
    held = _held(pieces, place or nullcontext())
    first = await anext(held)
    return StreamingResponse(
        _continued(first, held),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _held(
    pieces: AsyncGenerator[bytes, None], place: AbstractContextManager[None]
) -> AsyncGenerator[bytes, None]:
    with place:
        # A client that leaves takes its work with it.
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece


async def _continued(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece
