"""Tenants live side by side and never see each other."""

import json
import logging
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from omnifarm.tenancy import TenantLimits
from tests.integration.serve.conftest import Server, picture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def globex(server: Server) -> Iterator[httpx.Client]:
    with server.http(server.key("globex")) as client:
        yield client


def upload(client: httpx.Client, data: bytes = b"", purpose: str = "vision") -> str:
    reply = client.post(
        "/v1/files", data={"purpose": purpose}, files={"file": ("a", data or picture(), "application/octet-stream")}
    )
    assert reply.status_code == 200, reply.text
    file_id: str = reply.json()["id"]
    return file_id


def error_of(reply: httpx.Response, status: int) -> dict[str, object]:
    assert reply.status_code == status, reply.text
    error: dict[str, object] = reply.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


def question(name: str) -> dict[str, object]:
    return {"model": "bagel", "messages": [{"role": "user", "content": f"Who is <{name}>?"}], "max_tokens": 2}


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer", "Bearer wrong", "Bearer omf_acme_" + "A" * 43, "Bearer omf_nobody_" + "A" * 43, "Basic YTpi"],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/files", "/v1/concepts", "/v1/fine_tuning/jobs", "/metrics"])
def test_without_a_key_that_fits_every_door_is_closed(server: Server, authorization: str | None, path: str) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = httpx.get(server.url + path, headers=headers)
    assert error_of(reply, 401)["type"] == "authentication_error"
    assert reply.headers["www-authenticate"].startswith("Bearer")


def test_a_revoked_key_opens_nothing(server: Server) -> None:
    known = {one.key_id for account in server.accounts.list() for one in account.keys}
    key = server.accounts.add_key("acme", scopes=["use"])
    (stored,) = [one for account in server.accounts.list() for one in account.keys if one.key_id not in known]
    # A replica that never saw the key reads the account now; one that did believes it for two more seconds.
    server.accounts.revoke("acme", stored.key_id)
    assert server.accounts.authenticate(key) is None


@pytest.mark.parametrize(
    ("scope", "method", "path"),
    [("use", "GET", "/v1/files"), ("use", "DELETE", "/v1/concepts/maeve"), ("learn", "GET", "/v1/models"),
     ("learn", "GET", "/metrics"), ("operate", "GET", "/v1/fine_tuning/jobs")],
)  # fmt: skip
def test_a_key_without_the_scope_is_forbidden(
    serve_scoped: Callable[[str], httpx.Client], scope: str, method: str, path: str
) -> None:
    error_of(serve_scoped(scope).request(method, path), 403)


@pytest.fixture(scope="module")
def serve_scoped(serve_with: Callable[..., Server]) -> Callable[[str], httpx.Client]:
    fresh = serve_with()
    clients = {scope: fresh.http(fresh.key("acme", scope)) for scope in ("use", "learn", "operate")}  # type: ignore[arg-type]
    return lambda scope: clients[scope]


def test_a_concept_of_another_tenant_and_one_of_nobody_are_told_apart_by_nothing(http: httpx.Client) -> None:
    replies = [http.post("/v1/chat/completions", json=question(name)) for name in ("only-globex", "only-nobody")]
    errors = [error_of(reply, 404) for reply in replies]
    said = [json.dumps(error).replace("globex", "X").replace("nobody", "X") for error in errors]
    assert said[0] == said[1]
    for method, path in (
        ("GET", "/v1/concepts/{}"),
        ("DELETE", "/v1/concepts/{}"),
        ("GET", "/v1/models/bagel:{}"),
    ):
        replies = [http.request(method, path.format(name)) for name in ("only-globex", "only-nobody")]
        bodies = [json.dumps(error_of(reply, 404)).replace("globex", "X").replace("nobody", "X") for reply in replies]
        assert bodies[0] == bodies[1]


def test_the_same_name_is_another_concept_to_another_tenant(http: httpx.Client, globex: httpx.Client) -> None:
    versions = [client.get("/v1/concepts/maeve").json()["version"] for client in (http, globex)]
    assert versions == [f"{1:064x}", f"{2:064x}"]
    draw = {"prompt": "A photo of <maeve>.", "size": "32x32", "num_timesteps": 3, "replay": "off"}
    pictures = [
        client.post("/v1/images/generations", json=draw).json()["data"][0]["b64_json"]
        for client in (http, globex, http)
    ]
    assert pictures[0] == pictures[2]
    assert pictures[0] != pictures[1]
    names = [{one["name"] for one in client.get("/v1/concepts").json()["data"]} for client in (http, globex)]
    assert "only-globex" not in names[0]
    assert "only-acme" not in names[1]


def test_files_and_jobs_of_others_do_not_exist(http: httpx.Client, globex: httpx.Client, server: Server) -> None:
    photo = upload(globex)
    document = upload(globex, json.dumps({"class": "dog", "photos": [photo]}).encode(), "fine-tune")
    asked = {"model": "bagel", "training_file": document, "suffix": "rex"}
    job = globex.post("/v1/fine_tuning/jobs", json=asked).json()["id"]
    for path in (f"/v1/files/{photo}", f"/v1/files/{photo}/content", f"/v1/fine_tuning/jobs/{job}",
                 f"/v1/fine_tuning/jobs/{job}/events"):  # fmt: skip
        assert globex.get(path).status_code == 200
        error_of(http.get(path), 404)
    error_of(http.delete(f"/v1/files/{photo}"), 404)
    error_of(http.post(f"/v1/fine_tuning/jobs/{job}/cancel"), 404)
    error_of(http.post("/v1/fine_tuning/jobs", json=asked), 404)
    # A document of one's own cannot borrow somebody's photographs either.
    mine = upload(http, json.dumps({"class": "dog", "photos": [photo]}).encode(), "fine-tune")
    error_of(http.post("/v1/fine_tuning/jobs", json={**asked, "training_file": mine}), 404)
    assert photo not in [file["id"] for file in http.get("/v1/files").json()["data"]]
    assert job not in [one["id"] for one in http.get("/v1/fine_tuning/jobs").json()["data"]]
    assert globex.post(f"/v1/fine_tuning/jobs/{job}/cancel").json()["status"] == "cancelled"


def test_a_key_of_idempotency_belongs_to_its_tenant(http: httpx.Client, globex: httpx.Client) -> None:
    headers = {"Idempotency-Key": "the-same"}
    replies = [
        client.post("/v1/chat/completions", json=question("maeve"), headers=headers) for client in (http, globex)
    ]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].json()["id"] != replies[1].json()["id"]


def test_a_repeated_request_is_answered_from_memory(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "again"}
    first, second = (http.post("/v1/chat/completions", json=question("maeve"), headers=headers) for _ in range(2))
    assert first.json() == second.json()
    other = http.post("/v1/chat/completions", json=question("only-acme"), headers=headers)
    assert "Idempotency-Key" in str(error_of(other, 422)["message"])


def test_what_failed_may_be_tried_again_under_its_key(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "failing"}
    for _ in range(2):
        error_of(http.post("/v1/chat/completions", json=question("nobody"), headers=headers), 404)


def test_a_tenant_that_asks_too_fast_is_told_when_to_come_back(serve_with: Callable[..., Server]) -> None:
    server = serve_with()
    server.accounts.create("hasty", limits=TenantLimits(requests_per_minute=20))
    with server.http(server.key("hasty")) as hasty, server.http(server.key("acme")) as acme:
        statuses = [hasty.get("/v1/concepts").status_code for _ in range(4)]
        refused = hasty.get("/v1/concepts")
        assert statuses == [200, 200, 429, 429]
        assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["Retry-After"]) <= 4
        assert acme.get("/v1/concepts").status_code == 200


def test_a_tenant_may_have_so_much_and_no_more(serve_with: Callable[..., Server]) -> None:
    server = serve_with()
    server.accounts.create("small", limits=TenantLimits(max_files=2, max_jobs=1, max_concepts=5))
    with server.http(server.key("small")) as small:
        photo = upload(small)
        document = upload(small, json.dumps({"class": "dog", "photos": [photo]}).encode(), "fine-tune")
        reply = small.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a", picture(), "image/png")})
        assert error_of(reply, 429)["code"] == "insufficient_quota"
        assert reply.headers["x-should-retry"] == "false"
        asked = {"model": "bagel", "training_file": document}
        assert small.post("/v1/fine_tuning/jobs", json={**asked, "suffix": "one"}).status_code == 200
        assert error_of(small.post("/v1/fine_tuning/jobs", json={**asked, "suffix": "two"}), 429)


def test_a_tenant_watches_so_many_jobs_and_no_more(serve_with: Callable[..., Server]) -> None:
    server = serve_with()
    server.accounts.create("curious", limits=TenantLimits(max_concurrent=1))
    with server.http(server.key("curious")) as curious:
        document = upload(curious, json.dumps({"class": "dog", "photos": [upload(curious)]}).encode(), "fine-tune")
        asked = {"model": "bagel", "training_file": document, "suffix": "one"}
        job = curious.post("/v1/fine_tuning/jobs", json=asked).json()["id"]
        paths = [f"/v1/fine_tuning/jobs/{job}/events?stream=true", f"/studio/api/jobs/{job}/watch"]
        for path in paths:
            with curious.stream("GET", path) as reply:
                assert reply.status_code == 200
                # Kept: httpx leaves the stream when nobody holds its lines.
                lines = reply.iter_lines()
                assert next(lines).startswith("event: ")
                for refused in map(curious.get, paths):
                    assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
                    assert int(refused.headers["Retry-After"]) >= 1
            # Whoever leaves gives the place back, as soon as the server has noticed.
            while server.services.admission._tenants["curious"].held["streams of jobs"]:
                time.sleep(0.01)


def test_every_request_has_an_id_and_one_line_without_text(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("omnifarm.access")
    log.addHandler(caplog.handler)
    log.setLevel(logging.INFO)
    try:
        body = question("maeve") | {"messages": [{"role": "user", "content": "a secret about <maeve>"}]}
        reply = http.post("/v1/chat/completions?x=secret", json=body, headers={"X-Request-Id": "my-request-1"})
        other = http.get("/v1/concepts/only-acme", headers={"X-Request-Id": "bad id\t!"})
    finally:
        log.removeHandler(caplog.handler)
    assert reply.headers["x-request-id"] == "my-request-1"
    assert other.headers["x-request-id"].startswith("req_")
    lines = {record.fields["request_id"]: record.fields for record in caplog.records if hasattr(record, "fields")}
    line = lines["my-request-1"]
    assert (line["tenant"], line["route"], line["status"]) == ("acme", "/v1/chat/completions", 200)
    assert line["bytes_in"] > 0 < line["bytes_out"]
    assert "secret" not in json.dumps(list(lines.values()))
    assert "only-acme" not in json.dumps(list(lines.values()))


def test_without_keys_only_this_machine_is_let_in(serve_with: Callable[..., Server]) -> None:
    server = serve_with(access="owner")
    with server.http() as client:
        assert client.get("/v1/concepts").status_code == 200
        error_of(client.get("/v1/concepts", headers={"Host": "example.org"}), 401)
        error_of(client.get("/v1/concepts", headers={"Origin": "https://example.org"}), 401)
        assert client.get("/v1/concepts", headers={"Origin": server.url}).status_code == 200
