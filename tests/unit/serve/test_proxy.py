"""The proxy's own refusals get our shape; the application's answers pass."""

import asyncio
import json
from typing import Any

import pytest

from serve.proxy import REPLICA_HEADER, ProxyAnswers, middlewares


def answered(status: int, headers: list[tuple[bytes, bytes]], path: str = "/v1/models") -> list[dict[str, Any]]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"Actor ", "more_body": True})
        await send({"type": "http.response.body", "body": b"died"})

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ProxyAnswers(app)({"type": "http", "path": path}, None, send))  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize("status", [500, 503])
def test_a_lost_replica_is_worth_another_try(status: int) -> None:
    start, body = answered(status, [(b"content-type", b"text/plain")])
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"2"
    assert json.loads(body["body"])["error"]["code"] == "overloaded"
    assert "Actor" not in body["body"].decode()


@pytest.mark.parametrize(
    ("status", "headers", "path"),
    [
        (500, [(REPLICA_HEADER, b"0")], "/v1/models"),
        (404, [], "/v1/models"),
        (200, [], "/v1/models"),
        (503, [], "/-/healthz"),
    ],
)
def test_everything_else_passes(status: int, headers: list[tuple[bytes, bytes]], path: str) -> None:
    sent = answered(status, headers, path)
    assert sent[0]["status"] == status
    assert b"".join(message["body"] for message in sent[1:]) == b"Actor died"


def test_a_replica_lost_before_it_began_to_answer_is_worth_another_try() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        """What the proxy does when the actor dies: it returns and has sent nothing."""

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ProxyAnswers(app)({"type": "http", "path": "/v1/models"}, None, send))  # type: ignore[arg-type]
    start, body = sent
    assert start["status"] == 503
    assert dict(start["headers"])[b"retry-after"] == b"2"
    assert json.loads(body["body"])["error"]["code"] == "overloaded"


def test_ray_serve_is_given_one_layer() -> None:
    assert [layer.cls for layer in middlewares()] == [ProxyAnswers]
