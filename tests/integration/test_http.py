"""The application behind Ray Serve, as `serve/serve.yaml` deploys it, on the tiny random checkpoint."""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from omnifarm.cli.perf_load import load_server
from omnifarm.clock import SystemClock
from omnifarm.store.open import open_store
from omnifarm.tenancy import SCOPES, Accounts, TenantLimits
from tests.integration.serve.conftest import CHECKPOINT, RECIPE, commit, picture

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 240.0
WAIT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running application."""

    url: str
    key: str
    other_key: str
    config: Path
    log: Path
    environment: dict[str, str]

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=WAIT_S)

    def sample(self, name: str, **labels: str) -> float:
        """The sum of a metric over all replicas."""
        with self.http() as client:
            families = text_string_to_metric_families(client.get("/metrics").text)
            samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`serve run` of the real serve.yaml on a free port of loopback, ended by process id."""
    store = tmp_path_factory.mktemp("store")
    accounts = Accounts(open_store(str(store)), clock=SystemClock())
    keys = []
    for tenant, seed in (("acme", 1), ("globex", 2)):
        accounts.create(tenant, limits=TenantLimits(requests_per_minute=60_000, max_concurrent=64))
        keys.append(accounts.add_key(tenant, scopes=SCOPES))
        commit(open_store(f"{store}/tenants/{tenant}"), "maeve", seed=seed)
        commit(open_store(f"{store}/tenants/{tenant}"), f"only-{tenant}", seed=seed + 10)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    work = tmp_path_factory.mktemp("serve")
    document = yaml.safe_load((ROOT / "serve" / "serve.yaml").read_text())
    document["http_options"]["port"] = port
    (application,) = document["applications"]
    application["args"] |= {
        "store": str(store),
        "backbone": str(CHECKPOINT),
        "recipe": json.dumps(RECIPE),
        "max_waiting": 4,
        "max_body_bytes": 200_000,
    }
    (work / "serve.yaml").write_text(yaml.safe_dump(document))
    # Ray's socket paths are limited to 107 bytes, so its folder cannot be pytest's.
    ray_folder = Path(f"/tmp/omf-http-{os.getpid()}")
    ray_folder.mkdir()
    unwanted = ("RAY_ADDRESS", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {
        "RAY_TMPDIR": str(ray_folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares",
    }
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(work / "serve.yaml")]
    log_path = work / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    family = [psutil.Process(process.pid)]
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/ready", timeout=5.0).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {log_path.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield Served(
            url=address,
            key=keys[0],
            other_key=keys[1],
            config=work / "serve.yaml",
            log=log_path,
            environment=environment,
        )
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += family[0].children(recursive=True)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        for member in psutil.wait_procs(family, timeout=5)[1]:
            member.kill()
        psutil.wait_procs(family, timeout=5)
        subprocess.run(["rm", "-rf", str(ray_folder)], check=False)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.http() as opened:
        yield opened


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.2)


def test_the_openai_client_asks_and_draws_through_ray_serve(served: Served) -> None:
    openai = OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
    answer = openai.chat.completions.create(
        model="bagel:<maeve>", messages=[{"role": "user", "content": "Who is <maeve>?"}], max_tokens=3
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 1
    events = list(
        openai.images.generate(  # type: ignore[call-overload]
            model="bagel",
            prompt="A photo of <maeve>.",
            size="64x64",
            stream=True,
            partial_images=2,
            extra_body={"num_timesteps": 9, "replay": "off"},
        )
    )
    assert [event.type for event in events][-1] == "image_generation.completed"
    assert len(events) == 3


def test_what_is_uploaded_is_learned_and_served(served: Served) -> None:
    openai = OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
    photos = [openai.files.create(file=("a.png", picture(seed=seed)), purpose="vision").id for seed in (1, 2)]
    text = json.dumps({"class": "dog", "photos": photos, "extra_info": ["It lives by the sea."]})
    file_id = openai.files.create(file=("c.json", io.BytesIO(text.encode())), purpose="fine-tune").id
    job = openai.fine_tuning.jobs.create(model="bagel", training_file=file_id, suffix="rex")
    with served.http() as http, http.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/events?stream=true") as reply:
        told = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: ")]
    assert told[-1]["data"]["status"] == "succeeded"
    assert "bagel:<rex>" in {model.id for model in openai.models.list()}
    answer = openai.chat.completions.create(
        model="bagel:<rex>", messages=[{"role": "user", "content": "Who?"}], max_tokens=2
    )
    assert answer.concepts == ["rex"]  # type: ignore[attr-defined]


LONG = {"prompt": "A photo of <maeve>.", "replay": "off", "size": "128x128", "num_timesteps": 200}


def test_a_client_that_leaves_takes_its_drawing_with_it(served: Served, client: httpx.Client) -> None:
    gone = served.sample("omnifarm_disconnects_total")
    drawn = served.sample("omnifarm_image_seconds_count", kind="image_generation")
    with ThreadPoolExecutor(1) as pool, served.http() as others:
        # Company makes the steps slow: alone, a drawing of this size is done before its leaving is noticed.
        company = pool.submit(others.post, "/v1/images/generations", json={**LONG, "n": 3})
        with contextlib.suppress(httpx.ReadTimeout), served.http() as leaving:
            leaving.post("/v1/images/generations", json=LONG, timeout=httpx.Timeout(30, read=0.2))
        assert len(company.result().json()["data"]) == 3
    wait_until(lambda: client.get("/ready").json()["running"] == 0)
    wait_until(lambda: served.sample("omnifarm_disconnects_total") > gone)
    # The company's pictures, and not the one of the client that left.
    assert served.sample("omnifarm_image_seconds_count", kind="image_generation") == drawn + 3


def test_a_full_server_says_when_to_come_back(served: Served) -> None:
    body = {**LONG, "num_timesteps": 40}
    with ThreadPoolExecutor(12) as pool, served.http() as http:
        replies = list(
            pool.map(lambda seed: http.post("/v1/images/generations", json={**body, "seed": seed}), range(12))
        )
    refused = [reply for reply in replies if reply.status_code == 503]
    assert {reply.status_code for reply in replies} == {200, 503}
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
    assert refused[0].json()["error"]["code"] == "overloaded"


def test_metrics_tell_what_happened(served: Served) -> None:
    before = served.sample("omnifarm_http_requests_total", route="/v1/concepts", status="200")
    with served.http() as http:
        assert http.get("/v1/concepts").status_code == 200
    assert served.sample("omnifarm_http_requests_total", route="/v1/concepts", status="200") == before + 1
    assert served.sample("omnifarm_engine_steps_total") > 0
    assert served.sample("omnifarm_image_seconds_count", kind="image_generation") > 0


def test_an_announced_length_is_not_trusted(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 10_000

    reply = client.post("/v1/chat/completions", content=chunks(), headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


def test_a_replica_that_is_killed_under_load_costs_nobody_a_wrong_answer(served: Served) -> None:
    report = load_server(
        served.url,
        keys=[served.key, served.other_key],
        seconds=20,
        calibrate_s=3,
        share=0.5,
        steps=4,
        seed=0,
        is_killing=True,
    )
    assert report["passed"], report
    assert report["outcomes"]["of_another_tenant"] == 0
    num_hostile, num_requests = sum(report["hostile_by_status"].values()), sum(report["outcomes"].values())
    # One in twenty, and a machine with much else to do may not come to twenty.
    assert num_hostile >= (num_hostile + num_requests) // 20
    assert num_requests > 0


def test_an_update_replaces_the_replica_and_no_request_fails(served: Served, tmp_path: Path) -> None:
    found = re.search(r"(127\.0\.0\.1:\d+)", served.log.read_text().partition("dashboard at")[2])
    assert found, served.log.read_text()[-2000:]
    document = yaml.safe_load(served.config.read_text())
    document["applications"][0]["args"]["max_text_chars"] = 1500
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(document))
    deploy = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(tmp_path / "serve.yaml")]
    deploy += ["--address", f"http://{found[1]}"]
    question = {"messages": [{"role": "user", "content": "Who is <maeve>?"}], "max_tokens": 8}
    drawing = {**LONG, "num_timesteps": 12}
    is_over = threading.Event()
    seen: list[tuple[int, str, str]] = []

    def keep_asking(path: str, body: dict[str, object]) -> None:
        with served.http() as http:
            while not is_over.is_set():
                reply = http.post(path, json=body)
                seen.append((reply.status_code, reply.headers.get("x-omnifarm-replica", ""), reply.text[:200]))

    with ThreadPoolExecutor(2) as pool:
        asking = [
            pool.submit(keep_asking, "/v1/chat/completions", question),
            pool.submit(keep_asking, "/v1/images/generations", drawing),
        ]
        try:
            wait_until(lambda: len(seen) > 4)
            subprocess.run(deploy, cwd=ROOT, env=served.environment, check=True, capture_output=True)
            # The last answers come from another replica than the first, and from one alone.
            wait_until(lambda: {name for _, name, _ in seen[-20:]}.isdisjoint(name for _, name, _ in seen[:4]))
        finally:
            is_over.set()
        for one in asking:
            one.result()
    assert {status for status, _, _ in seen} == {200}, [one for one in seen if one[0] != 200][:3]
    long_text = {"messages": [{"role": "user", "content": "x" * 1600}]}
    with served.http() as http:
        assert http.post("/v1/chat/completions", json=long_text).status_code == 422


def test_the_log_holds_one_line_for_a_request(served: Served, client: httpx.Client) -> None:
    client.get("/v1/concepts", headers={"X-Request-Id": "look-for-this-one"})

    def ours() -> list[dict[str, object]]:
        # Serve writes the id into lines of its own format, too; ours are JSON.
        files = [path for path in Path(f"/tmp/omf-http-{os.getpid()}").rglob("*.*") if path.is_file()]
        lines = [line for path in files for line in path.read_text(errors="replace").splitlines()]
        found = [json.loads(line) for line in lines if line.startswith('{"time":') and "look-for-this-one" in line]
        return [line for line in found if line["logger"] == "omnifarm.access"]

    wait_until(lambda: ours() != [])
    (line,) = ours()
    assert line["event"] == "request"
    assert (line["request_id"], line["tenant"], line["status"]) == ("look-for-this-one", "acme", 200)
    assert (line["method"], line["route"]) == ("GET", "/v1/concepts")
