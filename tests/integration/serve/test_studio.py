"""The studio's own endpoints about pictures and benchmark runs, over HTTP: who may ask, what is refused."""

import http.client
import json
import logging
import re
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute

from omnifarm.bench.report.build import SCHEMA_VERSION
from omnifarm.store.open import open_store
from omnifarm.tenancy import tenant_store_url
from serve.routes import studio
from tests.integration.serve.conftest import Server, picture

pytestmark = pytest.mark.slow


def put_report(server: Server, tenant: str, run: str, *, version: int = SCHEMA_VERSION) -> None:
    """Put the smallest report into a tenant's store: no column, no row."""
    report = {
        "schema_version": version,
        "run": run,
        "plan": {"data": "miniature:0", "seeds": [0], "recipe": {}},
        "about": {
            "backbone": "miniature",
            "fingerprint": "f" * 64,
            "recipe": {"steps": 1},
            "hardware": "2 cores",
            "commit": "abc",
            "date": "2026-11-28",
            "benchmark": "b" * 64,
        },
        "protocol": "strict",
        "judge": "",
        "judge_report": {},
        "num_concepts": 1,
        "num_items": 2,
        "rows": [],
        "columns": [],
        "reasons": {},
        "cells": {"real_images": {}},
    }
    store = open_store(tenant_store_url(server.services.spaces.root.url, tenant))
    store.put(f"benchmark/{run}/report.json", json.dumps(report).encode())
    store.put(f"benchmark/{run}/report.html", b"<!doctype html>")


def looking(client: httpx.Client, name: str, **files: bytes) -> httpx.Response:
    return client.post(f"/studio/api/concepts/{name}/looking", files={key: ("a", data) for key, data in files.items()})


def test_a_map_shares_out_what_a_picture_gets(server: Server) -> None:
    with server.http(server.key("acme", "use")) as client:
        reply = looking(client, "maeve", image=picture(96, 64))
    assert reply.status_code == 200, reply.text
    rows = reply.json()["shares"]
    assert len(rows[0]) > len(rows) > 1
    assert sum(map(sum, rows)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "files", "status", "words"),
    [
        ("nobody", {"image": picture()}, 404, "none named <nobody>"),
        ("maeve", {"other": picture()}, 422, "a picture under the name image"),
        ("maeve", {"image": b"GIF89a" + bytes(40)}, 415, "GIF"),
    ],
)
def test_a_picture_that_cannot_be_looked_at_is_refused(
    server: Server, name: str, files: dict[str, bytes], status: int, words: str
) -> None:
    with server.http(server.key("acme", "use")) as client:
        reply = looking(client, name, **files)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]["message"]


def test_a_tenant_sees_its_own_benchmark_runs_alone(server: Server) -> None:
    put_report(server, "acme", "ours-1")
    with server.http(server.key("acme", "use")) as acme, server.http(server.key("globex", "use")) as globex:
        listed = acme.get("/studio/api/reports").json()
        assert [one["run"] for one in listed["reports"]] == ["ours-1"]
        assert listed["store"] is None, "where a store is concerns nobody but its owner"
        assert acme.get("/studio/api/reports/ours-1").json()["run"] == "ours-1"
        page = acme.get("/studio/api/reports/ours-1/page")
        assert page.headers["content-disposition"] == 'attachment; filename="ours-1.html"'
        assert "script" not in page.headers["content-security-policy"].replace("sandbox", "")
        assert globex.get("/studio/api/reports").json()["reports"] == []
        for path in ("/studio/api/reports/ours-1", "/studio/api/reports/ours-1/page"):
            assert globex.get(path).status_code == 404
    for path in ("/studio/api/reports", "/studio/api/reports/ours-1", "/studio/api/reports/ours-1/page"):
        assert httpx.get(server.url + path).status_code == 401


def test_a_report_of_another_version_is_not_shown(server: Server) -> None:
    put_report(server, "globex", "old", version=SCHEMA_VERSION + 1)
    with server.http(server.key("globex", "use")) as client:
        assert client.get("/studio/api/reports").json()["reports"] == []
        assert client.get("/studio/api/reports/old").status_code == 404
        assert client.get("/studio/api/reports/..%2Faccounts/page").status_code == 404


HOSTILE = ("\0", "a\0b", "a" * 300, "..", ".", "%2e%2e%2f", "../../accounts/acme", "a\nb", "\U0001f600", "", " ", "a.")
"""What no path of the studio has for a name; each is sent percent-encoded, and the dots also as they are."""


def studio_paths() -> Iterator[tuple[str, str]]:
    """Every path of the studio with something hostile in one of its places, and with it in all of them."""
    for route in studio.router.routes:
        assert isinstance(route, APIRoute)
        template = re.sub(r":[a-z]+}", "}", route.path)
        usual = dict.fromkeys(re.findall(r"{(\w+)}", template), "maeve") | {"number": "0", "version": f"{1:064x}"}
        places = [name for name in usual if f"{{{name}}}" in template]
        for part in HOSTILE:
            sent = {"%2e%2e%2f": part}.get(part, quote(part, safe=""))
            for changed in [*([place] for place in places), places]:
                yield min(route.methods), template.format(**usual | dict.fromkeys(changed, sent))
    for part in HOSTILE:
        yield "GET", f"/studio/js/{quote(part, safe='')}.js"


@pytest.mark.parametrize("has_key", [True, False], ids=["with a key", "without"])
def test_no_path_makes_the_studio_fail(server: Server, has_key: bool, caplog: pytest.LogCaptureFixture) -> None:
    paths = sorted(set(studio_paths()))
    assert len(paths) > 100
    headers = {"Authorization": f"Bearer {server.key('acme')}"} if has_key else {}
    # httpx would resolve the dots before it sends them.
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    log = logging.getLogger("omnifarm")
    log.addHandler(caplog.handler)
    try:
        for method, path in paths:
            connection.request(method, path, headers=headers)
            reply = connection.getresponse()
            body = reply.read()
            assert reply.status in (200, 307, 401, 404, 405, 415, 422), (method, path, reply.status, body)
            if reply.status >= 400:
                assert set(json.loads(body)["error"]) >= {"message", "type", "param", "code"}, (method, path)
    finally:
        log.removeHandler(caplog.handler)
        connection.close()
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
