"""The studio in a real browser: headless Chromium, real HTTP, the miniature, a trainer beside it; no Ray."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from omnifarm.cli.studio_samples import teach as teach_invention
from omnifarm.store.open import open_store
from omnifarm.tenancy import Accounts
from serve.api import build_api
from serve.assembly import build_services, build_trainer
from serve.services import Services
from serve.settings import ServeSettings
from serve.training import ConceptTrainer

CHECKPOINT = Path(__file__).parents[1] / "golden" / "a" / "checkpoint"
# More for pictures worth looking at.
STEPS = int(os.environ.get("OMNIFARM_STUDIO_STEPS", "24"))
CHROMIUM = os.environ.get("OMNIFARM_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
# A loaded machine draws and learns slowly; nothing here waits this long on a quiet one.
PATIENCE_MS = 90_000 + 1_000 * STEPS


@dataclass(frozen=True, kw_only=True)
class Studio:
    """A running server with a trainer."""

    url: str
    services: Services
    trainer: ConceptTrainer
    accounts: Accounts

    def http(self, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_MS / 1000)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Studio]]:
    """Start servers with given settings; they end with the session."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []
    trainers: list[threading.Thread] = []
    ending = threading.Event()

    def train(trainer: ConceptTrainer) -> None:
        while not ending.wait(0.2):
            while (turn := trainer.next_turn()) is not None:
                trainer.take(turn)

    def begin(**changes: Any) -> Studio:
        values: dict[str, Any] = {
            "store": str(tmp_path_factory.mktemp("store")),
            "access": "owner",
            "log_level": "WARNING",
            "recipe": json.dumps({"warmup_steps": 1}),
            "checkpoint_s": 1,
        }
        settings = ServeSettings(**(values | changes))
        services, trainer = build_services(settings), build_trainer(settings)
        trainers.append(threading.Thread(target=train, args=(trainer,), daemon=True))
        trainers[-1].start()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(build_api(services), port=port, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        accounts = Accounts(open_store(settings.store), clock=services.clock)
        return Studio(url=f"http://127.0.0.1:{port}", services=services, trainer=trainer, accounts=accounts)

    yield begin
    ending.set()
    for thread in trainers:
        # A process that ends in the middle of a step is aborted.
        thread.join(timeout=60)
    for server, thread in servers:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="session")
def studio(start: Callable[..., Studio]) -> Studio:
    return start()


@pytest.fixture(scope="session")
def teach(studio: Studio) -> Callable[..., str]:
    """Have somebody of the drawn world learned, and return the name."""

    def learn(group: str, *, seed: int, steps: int) -> str:
        with studio.http() as client:
            invention = client.get("/studio/api/inventions", params={"group": group, "seed": seed}).json()
            job = teach_invention(client, invention, steps=steps)
            while job["status"] in ("queued", "running"):
                # Returns when the job is over, so nothing here sleeps.
                client.get(f"/v1/fine_tuning/jobs/{job['id']}/events", params={"stream": True})
                job = client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
        assert job["status"] == "succeeded", job["error"]
        return str(invention["name"])

    return learn


@pytest.fixture(scope="session")
def somebody(teach: Callable[..., str]) -> str:
    """Name of a learned concept that no test deletes."""
    return teach("person", seed=3, steps=STEPS // 2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser of this module: while Playwright is open, nobody else in the process can run an event loop."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH, or its path in OMNIFARM_CHROMIUM")
    with sync_playwright() as driver:
        # Chromium's own sandbox needs kernel rights that containers lack; the only page it opens is ours.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--force-color-profile=srgb"])
        expect.set_options(timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages; whatever a page logs as an error, or its policy refuses, fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_page(url: str, *, size: dict[str, int] = DESKTOP, **settings: Any) -> Page:
        context = browser.new_context(viewport=size, accept_downloads=True, **settings)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"{error.name}: {error.message}\n{error.stack}"))
        # Refused requests are tested for what the page says about them; everything else is a mistake.
        page.on(
            "console",
            lambda line: (
                complaints.append(line.text)
                if line.type == "error" and not line.text.startswith("Failed to load resource")
                else None
            ),
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: OMNIFARM_SCREENSHOTS, for whoever wants to look at them, or nowhere in particular."""
    folder = Path(os.environ.get("OMNIFARM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
