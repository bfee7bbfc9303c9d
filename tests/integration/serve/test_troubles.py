"""What a client sees, and what is counted, when we crash, when it leaves too early, and when it sends too slowly."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from omnifarm.tenancy import TenantLimits
from serve import bodies
from serve.api import build_api
from serve.proxy import ProxyAnswers
from serve.routes import tuning
from tests.integration.serve.conftest import SMALL, Server, picture

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def own(serve_with: Callable[..., Server]) -> Server:
    """A server whose counters nobody else moves."""
    server = serve_with()
    server.accounts.create("slow", limits=TenantLimits(max_concurrent=1))
    return server


def counted(server: Server, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(server.services.metrics.text())
    found = (one for family in families for one in family.samples if one.name == name)
    return sum(one.value for one in found if labels.items() <= one.labels.items())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def half_sent(server: Server, key: str) -> socket.socket:
    """Open a connection and send a request without the end of its body."""
    url = httpx.URL(server.url)
    opened = socket.create_connection((url.host, url.port or 80), timeout=10)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {key}\r\n"
    opened.sendall(f'{head}Content-Type: application/json\r\nContent-Length: 900\r\n\r\n{{"model"'.encode())
    return opened


@pytest.fixture
def crashing(own: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    def crash(**_: Any) -> None:
        raise ValueError("secret insides")

    monkeypatch.setattr(own.services.engine, "list_concepts", crash)
    return own.key("acme")


def test_a_crash_is_a_500_with_its_id_and_no_insides(
    own: Server, crashing: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = counted(own, "omnifarm_http_requests_total", status="500")
    with caplog.at_level(logging.ERROR, logger="omnifarm.serve"), own.http(crashing) as http:
        reply = http.get("/v1/models", headers={"x-request-id": "crash-0001"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "insides" not in reply.text
    assert reply.headers["x-request-id"] == "crash-0001"
    assert "x-omnifarm-replica" in reply.headers
    (record,) = [one for one in caplog.records if one.message == "request_crashed"]
    assert record.fields == {"request_id": "crash-0001"}  # type: ignore[attr-defined]
    assert counted(own, "omnifarm_http_requests_total", status="500") == before + 1


def test_behind_the_proxy_a_crash_is_not_taken_for_a_lost_replica(own: Server, crashing: str) -> None:
    transport = httpx.ASGITransport(ProxyAnswers(build_api(own.services)))

    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/v1/models", headers={"Authorization": f"Bearer {crashing}"})

    reply = asyncio.run(asked())
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
    assert "Retry-After" not in reply.headers


def test_a_client_that_leaves_before_its_request_has_arrived_is_no_crash(
    own: Server, caplog: pytest.LogCaptureFixture
) -> None:
    gone, crashed = (
        counted(own, "omnifarm_disconnects_total"),
        counted(own, "omnifarm_http_requests_total", status="500"),
    )
    half_sent(own, own.key("acme")).close()
    wait_until(lambda: counted(own, "omnifarm_disconnects_total") == gone + 1)
    assert counted(own, "omnifarm_http_requests_total", status="500") == crashed
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


def test_who_sends_slowly_holds_no_more_than_its_share(own: Server) -> None:
    key = own.key("slow")
    refused = counted(own, "omnifarm_refused_total", reason="rate_or_quota")
    first = half_sent(own, key)
    with own.http(key) as http:
        body = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 1}
        wait_until(lambda: http.post(CHAT, json=body).status_code == 429)
        assert counted(own, "omnifarm_refused_total", reason="rate_or_quota") > refused
        first.close()
        wait_until(lambda: http.post(CHAT, json=body).status_code == 200)


def test_a_body_that_does_not_arrive_in_time_is_408(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "ARRIVAL_S", 0.2)
    with half_sent(own, own.key("acme")) as opened:
        reply = opened.recv(65536).decode()
    assert reply.startswith("HTTP/1.1 408")
    error = json.loads(reply.partition("\r\n\r\n")[2])["error"]
    assert error["code"] == "request_timeout"
    assert "expected the whole body within 0.2 s, found 8 bytes" in error["message"]


def test_a_long_stream_of_events_ends_by_itself_and_says_so(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "LONGEST_STREAM_S", 0.0)
    client = own.openai(own.key("acme"))
    photo = client.files.create(file=("photo.png", picture(seed=1)), purpose="vision").id
    document = json.dumps({"class": "dog", "photos": [photo]}).encode()
    file_id = client.files.create(file=("concept.json", document), purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="bo")
    with own.http(own.key("acme")) as http:
        lines = http.get(f"/v1/fine_tuning/jobs/{job.id}/events?stream=true").text.splitlines()
    assert [line for line in lines if line.startswith("event: ")] == ["event: message", "event: reconnect"]


def test_a_conversation_goes_on_with_the_reply_as_it_came(acme: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Who is <maeve>?"}]
    think: dict[str, Any] = {"think": True}
    for body in ({}, think):
        reply = acme.chat.completions.create(model="bagel", messages=messages, max_tokens=3, extra_body=body)
        messages += [reply.choices[0].message, {"role": "user", "content": "And where?"}]
    dumped = [one if isinstance(one, dict) else one.model_dump() for one in messages]
    last = acme.chat.completions.create(model="bagel", messages=dumped, max_tokens=3, stop=None)
    assert last.choices[0].finish_reason in ("stop", "length")
    silent: list[Any] = [{"role": "assistant", "content": None}, {"role": "user", "content": "Who?"}]
    assert acme.chat.completions.create(model="bagel", messages=silent, max_tokens=1).choices


@pytest.mark.parametrize("temperature", [1e-40, 1e-38, 1e-3, 2.0])
def test_any_temperature_gives_an_answer(http: httpx.Client, temperature: float) -> None:
    body = {"messages": [{"role": "user", "content": "Who?"}], "temperature": temperature, "max_tokens": 4}
    assert http.post(CHAT, json=body).status_code == 200
    if temperature < 1e-3:
        answers = {
            http.post(CHAT, json={**body, "seed": seed}).json()["choices"][0]["message"]["content"] for seed in (1, 2)
        }
        greedy = http.post(CHAT, json={**body, "temperature": 0}).json()["choices"][0]["message"]["content"]
        assert answers == {greedy}


@pytest.mark.parametrize(
    "options",
    [{"timestep_shift": 1e-9}, {"cfg_interval": [1.0, 0.0]}, {"cfg_interval": [-1, 0.5]}, {"cfg_interval": [0, 2]}],
)
def test_options_that_draw_nothing_are_refused(http: httpx.Client, options: dict[str, Any]) -> None:
    reply = http.post("/v1/images/generations", json={"prompt": "A dog.", "size": "32x32", **options})
    assert reply.status_code == 422
    assert next(iter(options)) in reply.json()["error"]["message"]


def test_an_edit_says_how_much_it_read_of_pictures(acme: OpenAI) -> None:
    edit = acme.images.edit(image=("a.png", picture()), prompt="add a hat", extra_body={"num_timesteps": 3})
    drawing = acme.images.generate(prompt="A dog.", **SMALL)
    assert edit.usage is not None
    assert drawing.usage is not None
    assert edit.usage.input_tokens_details.image_tokens > edit.usage.input_tokens_details.text_tokens > 0
    assert drawing.usage.input_tokens_details.image_tokens == 0
    for usage in (edit.usage, drawing.usage):
        details = usage.input_tokens_details
        assert details.image_tokens + details.text_tokens == usage.input_tokens
