"""What Ray Serve's HTTP proxy says by itself, in the shape of everything else.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy:middlewares

A request that finds no replica, too long a queue or no answer in time is answered by the proxy with plain text; one whose replica
dies before it has begun to answer is not answered at all, which the HTTP server turns into a bare 500. Trying again helps in all these cases,
so here they become 503 with Retry-After and an error body; answers of the application pass through untouched.
"""

import json
import math

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnifarm.errors import OverloadedError
from serve.errors import RETRY_AFTER_S, body_of

_TIMED_OUT = 408
REPLICA_HEADER = b"x-omnifarm-replica"
"""Header of every answer that the application gave: which replica it was."""


def middlewares() -> list[Middleware]:
    """Return what is put around the proxy; called by Ray Serve."""
    return [Middleware(ProxyAnswers)]


class ProxyAnswers:
    """ASGI middleware around the proxy.

    Args:
        app: The proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; put the proxy's own refusals into our shape."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        has_begun = is_replaced = False

        async def reshaping_send(message: Message) -> None:
            nonlocal has_begun, is_replaced
            if message["type"] == "http.response.start":
                has_begun = True
                names = {name.lower() for name, _ in message.get("headers", [])}
                is_refusal = message["status"] >= 500 or message["status"] == _TIMED_OUT
                is_replaced = is_refusal and REPLICA_HEADER not in names
                if is_replaced:
                    await _refuse(send)
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, reshaping_send)
        if not has_begun:
            # Nobody listens any more where it was the client that left.
            await _refuse(send)


async def _refuse(send: Send) -> None:
    error = OverloadedError("expected a free replica, found none in time, or lost it on the way; try again")
    body = json.dumps(body_of(error)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(math.ceil(RETRY_AFTER_S)).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
