"""Server-sent events: how streams are written."""

import json
from collections.abc import AsyncIterator
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


def stream_reply(pieces: AsyncIterator[bytes]) -> StreamingResponse:
    """Return the response that sends `pieces` as they come; proxies are told not to hold them back."""
    return StreamingResponse(
        pieces, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
