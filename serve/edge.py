"""The outermost layer: every request gets an id, is timed, counted and logged in one line, without its text.

Plain ASGI, so that streams pass through piece by piece and a client that leaves is seen. What nobody caught is answered
here, too, so that a crash has its id and its replica's name like every other answer, and is not taken for a lost replica.
"""

import asyncio
import logging
import re
import secrets
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnifarm.logs import event
from serve.errors import crash_body
from serve.metrics import Metrics
from serve.proxy import REPLICA_HEADER

_LOG = logging.getLogger("omnifarm.access")
_CRASHES = logging.getLogger("omnifarm.serve")
_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
CLIENT_LEFT = 499
"""Status in logs and counters of a request whose client left."""


class Edge:
    """ASGI middleware around the application.

    Args:
        app: What it is put around.
        metrics: Where requests are counted.
        replica: Named in every answer.
        is_behind_proxy: Whether Ray Serve's proxy gives requests their ids, and puts them into answers itself.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, replica: str, is_behind_proxy: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._replica = replica.encode()
        self._is_behind_proxy = is_behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode() if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        seen: dict[str, Any] = {"status": 0, "sent": 0, "received": 0}

        async def counting_receive() -> Message:
            message = await receive()
            seen["received"] += len(message.get("body", b""))
            return message

        async def marking_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                headers = [*message.get("headers", []), (REPLICA_HEADER, self._replica)]
                if not self._is_behind_proxy:
                    headers.append((b"x-request-id", request_id.encode()))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                seen["sent"] += len(message.get("body", b""))
            await send(message)

        started = time.perf_counter()
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, counting_receive, marking_send)
        except asyncio.CancelledError:
            seen["status"] = CLIENT_LEFT
            self._metrics.disconnected.inc()
            raise
        except ClientDisconnect:
            # It left before its request had arrived; there is nobody to answer.
            seen["status"] = CLIENT_LEFT
            self._metrics.disconnected.inc()
        except Exception as error:
            has_begun = bool(seen["status"])
            seen["status"] = 500
            _CRASHES.error("request_crashed", exc_info=error, extra={"fields": {"request_id": request_id}})
            if has_begun:
                raise
            await JSONResponse(crash_body(), status_code=500)(scope, receive, marking_send)
        except BaseException:
            seen["status"] = 500
            raise
        finally:
            self._metrics.in_flight.dec()
            self._note(scope, request_id, seen, time.perf_counter() - started)

    def _note(self, scope: Scope, request_id: str, seen: dict[str, Any], duration_s: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(seen["status"])).inc()
        self._metrics.request_s.labels(route).observe(duration_s)
        if seen["status"] in _REFUSALS:
            self._metrics.refused.labels(_REFUSALS[seen["status"]]).inc()
        state = scope.get("state", {})
        # The route's pattern instead of the path, and no query: names and texts of users stay out of the log.
        event(
            _LOG,
            "request",
            request_id=request_id,
            tenant=state.get("tenant"),
            key_id=state.get("key_id"),
            method=method,
            route=route,
            status=seen["status"],
            duration_s=round(duration_s, 4),
            bytes_in=seen["received"],
            bytes_out=seen["sent"],
        )


_REFUSALS = {401: "authentication", 403: "permission", 413: "too_large", 429: "rate_or_quota", 503: "overloaded"}
_METHODS = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})
