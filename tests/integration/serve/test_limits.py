"""What is too much, of another kind or wrong is refused before work begins, and says so."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from omnifarm.tenancy import TenantLimits
from tests.integration.serve.conftest import Server, picture

pytestmark = pytest.mark.slow

CHAT, DRAW, EDIT = "/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"


def error_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert len(error["message"]) >= 9
    return error


def chat(text: str = "What?", *pictures: bytes, **more: Any) -> dict[str, Any]:
    urls = ["data:image/png;base64," + base64.b64encode(data).decode() for data in pictures]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}], **more}


def test_too_many_bytes_or_pixels_are_413(http: httpx.Client) -> None:
    error_of(http.post(CHAT, json=chat("What?", b"\x89PNG" * 80_000)), 413)
    assert error_of(http.post(CHAT, json=chat("What?", picture(600, 600, kind="JPEG"))), 413)["code"] == "too_large"
    files = {"image": ("a", picture(600, 600, kind="JPEG"), "image/jpeg")}
    error_of(http.post(EDIT, data={"prompt": "x"}, files=files), 413)
    error_of(http.post("/v1/files", data={"purpose": "vision"}, files={"file": files["image"]}), 413)


def test_a_small_file_with_many_pixels_is_413_before_it_is_decoded(http: httpx.Client) -> None:
    bomb = picture(8, 8)
    # The header says 50,000 by 50,000 pixels; the data could never fill them.
    bomb = bomb[:16] + (50_000).to_bytes(4, "big") * 2 + bomb[24:]
    assert http.post(CHAT, json=chat("What?", bomb)).status_code in (413, 422)


def test_no_picture_is_decoded_before_its_request_has_a_place(serve_with: Callable[..., Server]) -> None:
    server = serve_with()
    server.accounts.create("outside", limits=TenantLimits(max_concurrent=0))
    damaged = picture()[:-20]
    with server.http(server.key("outside")) as outside, server.http(server.key("acme")) as acme:
        for http, status in ((outside, 429), (acme, 422)):
            for stream in (False, True):
                error_of(http.post(CHAT, json=chat("What?", damaged, stream=stream)), status)
                form = {"prompt": "x", "stream": str(stream).lower()}
                error_of(http.post(EDIT, data=form, files={"image": ("a.png", damaged, "image/png")}), status)
        assert server.services.admission.working == 0


def test_an_announced_length_is_not_trusted(http: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(60):
            yield b"x" * 10_000

    reply = http.post(CHAT, content=chunks(), headers={"Content-Type": "application/json"})
    error_of(reply, 413)


def test_other_kinds_are_415(http: httpx.Client) -> None:
    error_of(http.post(CHAT, content=b"question", headers={"Content-Type": "text/plain"}), 415)
    error_of(http.post(EDIT, json={"prompt": "x"}), 415)
    error_of(http.post(CHAT, json=chat("What?", picture(kind="GIF"))), 415)
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    error_of(http.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a.png", svg, "image/png")}), 415)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {}),
        (CHAT, {"messages": []}),
        (CHAT, chat(" ")),
        (CHAT, chat("What?" * 100)),
        (CHAT, chat(surprise=1)),
        (CHAT, chat(concepts=["../etc"])),
        (CHAT, chat(max_tokens=0)),
        (CHAT, chat(n=2)),
        (CHAT, chat(temperature=9)),
        (CHAT, chat("What?", picture()[:-20])),
        (CHAT, chat("What?", *[picture()] * 5)),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}),
        (DRAW, {"prompt": "A dog.", "size": "65x64"}),
        (DRAW, {"prompt": "A dog.", "size": "4096x64"}),
        (DRAW, {"prompt": "A dog.", "size": "large"}),
        (DRAW, {"prompt": "A dog.", "num_timesteps": 100_000}),
        (DRAW, {"prompt": "A dog.", "cfg_renorm_type": "local"}),
        (DRAW, {"prompt": "A dog.", "cfg_interval": [0.5]}),
        (DRAW, {"prompt": "A dog.", "replay": "sometimes"}),
        (DRAW, {"prompt": "A dog.", "n": 5}),
        (DRAW, {"prompt": "A dog.", "n": 2, "stream": True}),
        (DRAW, {"prompt": "A dog.", "response_format": "url"}),
        (DRAW, {"prompt": "A dog.", "seed": 2**63 - 1, "n": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:50],
)
def test_what_is_wrong_is_422_and_says_so(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    error_of(http.post(path, json=body), 422)


def test_a_body_that_does_not_parse_is_422(http: httpx.Client) -> None:
    for raw in (b"{", b"[]", b"\xff\xfe", b"[" * 5000, b'{"messages": NaN}', b'{"messages": [], "temperature": 1e999}'):
        error_of(http.post(CHAT, content=raw, headers={"Content-Type": "application/json"}), 422)
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    for raw in (b"", b"--x", b"--x\r\nContent-Disposition: form-data\r\n\r\n--x--"):
        error_of(http.post(EDIT, content=raw, headers=broken), 422)


HALF = "\ud800"
"""One half of a surrogate pair: JSON can name it, no text can hold it."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": HALF}]}),
        (CHAT, chat(HALF)),
        (CHAT, chat(metadata={"note": HALF})),
        (CHAT, chat(**{HALF: 1})),
        (DRAW, {"prompt": HALF}),
        ("/v1/fine_tuning/jobs", {"model": "bagel", "training_file": "file", "suffix": "a", "metadata": {"a": HALF}}),
    ],
    ids=["content", "part", "metadata", "name", "prompt", "job"],
)
def test_text_that_is_not_unicode_is_422(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    reply = http.post(path, content=raw, headers={"Content-Type": "application/json"})
    assert "surrogate" in error_of(reply, 422)["message"]


def test_forms_and_documents_hold_unicode_too(http: httpx.Client) -> None:
    # UTF-7, which a form may ask for, spells half a pair as plain ASCII.
    head = "Content-Disposition: form-data; name="
    parts = [f'{head}"prompt"\r\n\r\n+2AA-', f'{head}"image"; filename="a"\r\n\r\nx']
    form = "".join(f"--x\r\n{part}\r\n" for part in parts) + "--x--"
    kind = {"Content-Type": "multipart/form-data; charset=utf-7; boundary=x"}
    assert "surrogate" in error_of(http.post(EDIT, content=form, headers=kind), 422)["message"]
    document = ("c.json", json.dumps({"class": HALF}).encode(), "application/json")
    reply = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": document})
    assert "surrogate" in error_of(reply, 422)["message"]


def test_notes_have_openais_bounds(http: httpx.Client) -> None:
    for notes in ({"a": "x" * 513}, {"a" * 65: "x"}, {str(number): "x" for number in range(17)}):
        error_of(http.post(CHAT, json=chat(metadata=notes)), 422)
    assert http.post(CHAT, json=chat(metadata={"a" * 64: "x" * 512}, max_tokens=1)).status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "https://user@localhost/",
        "https://[::1]:bad/",
        "data:image/png,plain",
        "",
    ],
)
def test_no_url_is_fetched(http: httpx.Client, url: str) -> None:
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    error_of(http.post(CHAT, json={"messages": [{"role": "user", "content": parts}]}), 422)


def test_a_named_host_is_not_asked_either_when_it_is_this_machine(serve_with: Callable[..., Server]) -> None:
    server = serve_with(fetch_hosts="localhost, localhost:8443, Example.org")
    with server.http(server.key("acme")) as http:
        for url, reason in (
            ("https://localhost/a.png", "private"),
            ("https://localhost:8443/a.png", "private"),
            ("https://localhost:8444/a.png", "does not fetch"),
            ("http://example.org/a.png", "does not fetch"),
        ):
            parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
            reply = http.post(CHAT, json={"messages": [{"role": "user", "content": parts}]})
            assert reason in error_of(reply, 422)["message"]


def test_edits_need_one_to_four_pictures_under_their_name(http: httpx.Client) -> None:
    file = ("a.png", picture(), "image/png")
    form = {"prompt": "remove it", "num_timesteps": "3"}
    error_of(http.post(EDIT, data=form, files={"other": file}), 422)
    error_of(http.post(EDIT, data=form, files=[("image[]", file)] * 5), 422)
    error_of(http.post(EDIT, data={**form, "image": "text"}, files={"mask": file}), 422)
    error_of(http.post(EDIT, data={**form, "size": "64x64"}, files={"image": file}), 422)
    # A mask without a transparent place would change nothing.
    assert "transparent" in error_of(http.post(EDIT, data=form, files={"image": file, "mask": file}), 422)["message"]


def test_unknown_paths_and_methods_have_the_same_error_shape(http: httpx.Client) -> None:
    assert error_of(http.get("/v2/nothing-of-that-name"), 404)["type"] == "not_found_error"
    error_of(http.delete(CHAT), 405)


def test_health_and_readiness_need_no_key(server: Server) -> None:
    with server.http() as anybody:
        assert anybody.get("/health").json() == {
            "status": "ok",
            # Not where it lies.
            "backbone": "checkpoint",
            "fingerprint": server.services.engine.fingerprint,
        }
        assert anybody.get("/ready").json() == {"status": "ready", "running": 0, "waiting": 0}


def test_the_exposition_parses_and_counts(server: Server, http: httpx.Client) -> None:
    http.post(CHAT, json=chat("Who is <maeve>?", max_tokens=2))
    families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}
    assert families["omnifarm_answer_tokens"].samples[0].value >= 1
    assert {sample.labels["work"] for sample in families["omnifarm_engine_step_tokens"].samples} >= {"read", "write"}
    assert all("replica" in sample.labels for family in families.values() for sample in family.samples)
