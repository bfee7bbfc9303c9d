"""The application over real HTTP, without Ray: uvicorn in a thread, the tiny random checkpoint, two tenants."""

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from openai import OpenAI
from PIL import Image

from omnifarm.backbone.weights import backbone_info
from omnifarm.concept.artifact import ArtifactManifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.store.base import Store
from omnifarm.tenancy import Accounts, Scope, TenantLimits
from serve.api import build_api
from serve.assembly import build_services, build_trainer
from serve.services import Services
from serve.settings import ServeSettings
from serve.training import ConceptTrainer

CHECKPOINT = Path(__file__).parents[2] / "golden" / "a" / "checkpoint"
RECIPE = {
    "steps": 4,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
    "num_und": 2,
    "num_gen": 2,
    "precision": "float32",
}
SMALL = {"size": "32x32", "extra_body": {"num_timesteps": 3, "replay": "off"}}
"""A drawing that takes no time."""


def commit(store: Store, name: str, *, seed: int) -> None:
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
    assert ConceptRepository(store).commit(manifest, soft_tokens)


def picture(width: int = 64, height: int = 64, *, kind: str = "PNG", seed: int = 0) -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).save(buffer, format=kind)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server and what lies behind it."""

    url: str
    services: Services
    trainer: ConceptTrainer
    accounts: Accounts

    def key(self, tenant: str, *scopes: Scope) -> str:
        return self.accounts.add_key(tenant, scopes=scopes or ("use", "learn", "operate"))

    def openai(self, key: str) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def train(self) -> None:
        """Learn everything that waits."""
        while (turn := self.trainer.next_turn()) is not None:
            self.trainer.take(turn)


@pytest.fixture(scope="session")
def serve_with(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start servers with given settings; they end with the session."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**changes: object) -> Server:
        store = tmp_path_factory.mktemp("store")
        values = {
            "store": str(store),
            "backbone": str(CHECKPOINT),
            "recipe": json.dumps(RECIPE),
            "max_body_bytes": 400_000,
            "max_image_bytes": 150_000,
            "max_pixels": 250_000,
            "max_text_chars": 300,
            "log_level": "WARNING",
        }
        settings = ServeSettings(**(values | changes))  # type: ignore[arg-type]
        services = build_services(settings)
        accounts = services.accounts
        for tenant, seed in (("acme", 1), ("globex", 2)):
            accounts.create(tenant, limits=TenantLimits(requests_per_minute=60_000))
            # The same name, different concepts; and one that only this tenant has.
            commit(services.spaces.of(tenant).store, "maeve", seed=seed)
            commit(services.spaces.of(tenant).store, f"only-{tenant}", seed=seed + 10)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(build_api(services), port=port, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return Server(
            url=f"http://127.0.0.1:{port}", services=services, trainer=build_trainer(settings), accounts=accounts
        )

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="session")
def server(serve_with: Callable[..., Server]) -> Server:
    return serve_with()


@pytest.fixture(scope="session")
def acme_key(server: Server) -> str:
    return server.key("acme")


@pytest.fixture(scope="session")
def acme(server: Server, acme_key: str) -> OpenAI:
    return server.openai(acme_key)


@pytest.fixture(scope="session")
def http(server: Server, acme_key: str) -> Iterator[httpx.Client]:
    with server.http(acme_key) as client:
        yield client
