"""The HTTP surface against one running Ray Serve, on the tiny random checkpoint of the golden vectors."""

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
import yaml
from PIL import Image

from omnifarm.backbone.weights import backbone_info
from omnifarm.concept.artifact import ArtifactManifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.store.open import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "golden" / "a" / "checkpoint"
START_TIMEOUT_S = 240.0
FEW_STEPS = {"num_timesteps": 3}


def commit(store: Path, name: str, *, seed: int) -> None:
    """Commit a concept whose soft tokens are noise."""
    info = backbone_info(CHECKPOINT)
    draw = torch.Generator().manual_seed(seed)
    soft_tokens = SoftTokens(
        und=torch.randn(5, info["hidden_size"], generator=draw) * 0.1,
        gen=torch.randn(4, info["hidden_size"], generator=draw) * 0.1,
    )
    manifest = ArtifactManifest(
        name=name,
        version=f"{seed:064x}",
        class_noun="dog",
        fingerprint=info["fingerprint"],
        data_digest="0" * 64,
        tensors_digest=tensors_digest(encode_soft_tokens(soft_tokens)),
        num_und=4,
        num_gen=4,
        width=info["hidden_size"],
        created_at_s=float(seed),
    )
    assert ConceptRepository(open_store(str(store))).commit(manifest, soft_tokens)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    commit(folder, "maeve", seed=1)
    commit(folder, "bo", seed=2)
    return folder


@pytest.fixture(scope="session")
def url(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a free port of loopback, ended by process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    work = tmp_path_factory.mktemp("serve")
    document = yaml.safe_load((ROOT / "serve" / "serve.yaml").read_text())
    document["http_options"]["port"] = port
    document["applications"][0]["args"] = {
        "store": str(store),
        "backbone": str(CHECKPOINT),
        "max_body_bytes": 200_000,
        "max_pixels": 250_000,
        "max_text_chars": 300,
        "max_waiting": 4,
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
    }
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(work / "serve.yaml")]
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    family = [psutil.Process(process.pid)]
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", timeout=5.0).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {(work / 'log').read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield address
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


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=120.0) as opened:
        yield opened


def picture(width: int = 64, height: int = 64, *, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, format=kind)
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def error_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) >= {"type", "message"}
    return error


def test_health_names_the_backbone(client: httpx.Client) -> None:
    reply = client.get("/health")
    assert reply.status_code == 200
    assert reply.json()["fingerprint"] == backbone_info(CHECKPOINT)["fingerprint"]


def test_a_concept_committed_while_the_server_runs_is_listed_and_usable(client: httpx.Client, store: Path) -> None:
    assert {entry["name"] for entry in client.get("/v1/concepts").json()["concepts"]} >= {"bo", "maeve"}
    commit(store, "late", seed=3)
    assert "<late>" in [entry["identifier"] for entry in client.get("/v1/concepts").json()["concepts"]]
    assert client.post("/v1/ask", json={"question": "Who is <late>?", "max_tokens": 3}).status_code == 200


def test_a_question_as_json_and_as_a_form_gets_the_same_answer(client: httpx.Client) -> None:
    asked = {"question": "Is <maeve> in the photo?", "max_tokens": 5}
    as_json = client.post("/v1/ask", json={**asked, "image": encoded(picture()), "concepts": ["maeve", "bo"]})
    form = {**asked, "max_tokens": "5", "concepts": ["maeve", "bo"]}
    as_form = client.post("/v1/ask", data=form, files={"image": ("a.png", picture(), "image/png")})
    assert as_json.status_code == as_form.status_code == 200, as_form.text
    assert as_json.json()["answer"] == as_form.json()["answer"]
    assert as_form.json()["concepts"] == ["maeve", "bo"]
    assert {"prefill_s", "decode_s", "total_s"} <= set(as_json.json()["timings"])


def test_a_drawing_is_repeatable_and_carries_its_trace(client: httpx.Client) -> None:
    body = {"prompt": "A photo of <maeve> at home.", "width": 64, "height": 48, "seed": 7, **FEW_STEPS}
    first, again = (client.post("/v1/generate", json=body).json() for _ in range(2))
    other = client.post("/v1/generate", json={**body, "seed": 8}).json()
    assert first["image"] == again["image"]
    assert first["image"]["data"] != other["image"]["data"]
    drawn = Image.open(io.BytesIO(base64.b64decode(first["image"]["data"])))
    assert drawn.size == (64, 48)
    assert first["concepts"] == ["maeve"]
    (trace,) = first["replay"]
    assert trace["mode"] == "unified"
    assert trace["status"] in ("used", "no_open_fact", "fallback_parse", "fallback_leak")
    assert "<maeve>" in trace["prompt"] == first["prompt"]


@pytest.mark.parametrize("mode", ["off", "three_stage"])
def test_replay_is_a_switch(client: httpx.Client, mode: str) -> None:
    body = {"prompt": "A photo of <maeve>.", "replay": mode, "width": 32, "height": 32, **FEW_STEPS}
    reply = client.post("/v1/generate", json=body).json()
    assert [trace["mode"] for trace in reply["replay"]] == [mode]


def test_an_edit_keeps_the_size_of_its_source(client: httpx.Client) -> None:
    form = {"instruction": "remove <maeve>: dog from the photo", "num_timesteps": "3", "seed": "1"}
    reply = client.post("/v1/edit", data=form, files={"image": ("a.jpg", picture(96, 64, kind="JPEG"), "image/jpeg")})
    assert reply.status_code == 200, reply.text
    assert (reply.json()["image"]["width"], reply.json()["image"]["height"]) == (96, 64)
    assert reply.json()["replay"][0]["status"] == "off"


def test_an_unknown_concept_is_404(client: httpx.Client) -> None:
    error = error_of(client.post("/v1/ask", json={"question": "Is <nobody> here?"}), 404)
    assert error["type"] == "UnknownConceptError"
    assert error["concept"] == "<nobody>"


def test_too_much_is_413(client: httpx.Client) -> None:
    big = {"question": "What?", "image": "A" * 300_000}
    error_of(client.post("/v1/ask", json=big), 413)
    error_of(client.post("/v1/ask", json={"question": "What?", "image": encoded(picture(600, 600))}), 413)


def test_an_announced_length_is_not_trusted(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 10_000

    reply = client.post("/v1/ask", content=chunks(), headers={"Content-Type": "application/json"})
    error_of(reply, 413)


def test_other_formats_are_415(client: httpx.Client) -> None:
    error_of(client.post("/v1/ask", content=b"question", headers={"Content-Type": "text/plain"}), 415)
    gif = picture(kind="GIF")
    error_of(client.post("/v1/ask", json={"question": "What?", "image": encoded(gif)}), 415)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/ask", {}),
        ("/v1/ask", {"question": " "}),
        ("/v1/ask", {"question": "What?" * 100}),
        ("/v1/ask", {"question": "What?", "surprise": 1}),
        ("/v1/ask", {"question": "What?", "image": "not base64!"}),
        ("/v1/ask", {"question": "What?", "concepts": ["../etc"]}),
        ("/v1/ask", {"question": "What?", "max_tokens": 0}),
        ("/v1/ask", {"question": "What?", "image": encoded(picture()[:-20])}),
        ("/v1/generate", {"prompt": "A dog.", "width": 65, "height": 64}),
        ("/v1/generate", {"prompt": "A dog.", "width": 4096, "height": 64}),
        ("/v1/generate", {"prompt": "A dog.", "num_timesteps": 100_000}),
        ("/v1/generate", {"prompt": "A dog.", "cfg_renorm_type": "local"}),
        ("/v1/generate", {"prompt": "A dog.", "replay": "sometimes"}),
        ("/v1/edit", {"instruction": "remove it"}),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:40],
)
def test_what_is_wrong_is_422_and_says_so(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    assert len(error_of(client.post(path, json=body), 422)["message"]) > 10


def test_a_body_that_does_not_parse_is_422(client: httpx.Client) -> None:
    for raw in (b"{", b"[]", b"\xff\xfe", b"[" * 5000):
        error_of(client.post("/v1/ask", content=raw, headers={"Content-Type": "application/json"}), 422)


def test_unknown_paths_have_the_same_error_shape(client: httpx.Client) -> None:
    error_of(client.get("/v2/nothing"), 404)
    error_of(client.get("/v1/ask"), 405)


def test_a_full_server_says_when_to_come_back(url: str) -> None:
    body = {"prompt": "A photo of <bo>.", "replay": "off", "width": 128, "height": 128, "num_timesteps": 40}
    with ThreadPoolExecutor(12) as pool:
        replies = list(
            pool.map(lambda seed: httpx.post(f"{url}/v1/generate", json={**body, "seed": seed}, timeout=120), range(12))
        )
    refused = [reply for reply in replies if reply.status_code == 503]
    assert {reply.status_code for reply in replies} == {200, 503}
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
    assert error_of(refused[0], 503)["type"] == "OverloadedError"
    assert httpx.get(f"{url}/health", timeout=30).json()["waiting"] == 0


def test_the_openapi_document_describes_both_kinds_of_body(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"]["/v1/edit"]["post"]["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["properties"]["image"]["format"] == "binary"
    assert "instruction" in content["application/json"]["schema"]["required"]
    assert {"404", "413", "415", "422", "503"} <= set(document["paths"]["/v1/ask"]["post"]["responses"])
