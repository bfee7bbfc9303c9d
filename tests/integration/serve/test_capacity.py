"""What an engine may use is a setting, and a replica whose engine stands still says that it is not ready."""

import threading
import time
from collections.abc import Callable

import pytest

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.serving.events import Event
from tests.integration.serve.conftest import Server

pytestmark = pytest.mark.slow


def test_the_cache_has_the_size_that_was_set(serve_with: Callable[..., Server]) -> None:
    server = serve_with(cached_tokens=100)
    with server.http(server.key("acme")) as http:
        reply = http.post("/v1/images/generations", json={"prompt": "A dog.", "size": "128x128", "replay": "off"})
    assert reply.status_code == 422
    assert "100 cached tokens" in reply.json()["error"]["message"]


def test_a_step_has_the_size_that_was_set(serve_with: Callable[..., Server]) -> None:
    """Two drawings of 2 * (4 + 2) tokens: side by side where a step has room for both, by turns where it has not."""
    steps = []
    for step_tokens in (0, 12):
        server = serve_with(step_tokens=step_tokens)
        engine = server.services.engine
        options = SamplingOptions(num_timesteps=33, cfg_interval=(0.0, 1.0))
        drawings = [engine.door.generate("A dog.", size=(32, 32), options=options, seed=seed) for seed in (1, 2)]
        for ticket in [server.services.worker.submit(drawing) for drawing in drawings]:
            ticket.result(60)
        steps.append(engine.statistics()["steps"])
    assert steps[0] < 64 <= steps[1]


def test_a_replica_whose_engine_stands_still_is_not_ready(serve_with: Callable[..., Server]) -> None:
    server = serve_with(stall_s=1)
    goes_on = threading.Event()

    def hang(event: Event) -> None:
        goes_on.wait()

    with server.http() as anybody:
        assert anybody.get("/ready").status_code == 200
        server.services.worker.submit(server.services.engine.door.ask("Who?", max_tokens=4), hang)
        try:
            deadline_s = time.monotonic() + 60
            while (reply := anybody.get("/ready")).status_code == 200:
                assert time.monotonic() < deadline_s
            assert reply.status_code == 503
            assert "within 1 s" in reply.json()["error"]["message"]
            assert int(reply.headers["Retry-After"]) >= 1
        finally:
            goes_on.set()
        while anybody.get("/ready").status_code != 200:
            assert time.monotonic() < deadline_s
