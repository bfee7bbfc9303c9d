"""The studio's sample concepts, taught over HTTP to the miniature: whoever teaches something meanwhile comes first."""

import json
from collections.abc import Callable

import pytest

from omnifarm.cli.studio_samples import SAMPLES, teach, teach_samples
from tests.integration.serve.conftest import Server

pytestmark = pytest.mark.slow


@pytest.fixture
def studio(serve_with: Callable[..., Server]) -> Server:
    recipe = json.dumps({"steps": 1, "warmup_steps": 0})
    return serve_with(backbone="miniature", access="owner", recipe=recipe, max_body_bytes=10**6)


def test_a_sample_is_put_off_for_somebody_who_teaches_meanwhile(studio: Server) -> None:
    said: list[str] = []
    waits = 0
    with studio.http() as client:
        mine = client.get("/studio/api/inventions", params={"group": "object", "seed": 5}).json()

        def wait_s(seconds: float) -> None:
            """Somebody begins to teach in the first wait; in each later one a trainer has its turn."""
            nonlocal waits
            waits += 1
            if waits == 1:
                teach(client, mine)
            else:
                studio.train()

        teach_samples(client, say=said.append, wait_s=wait_s)
        samples = [
            client.get("/studio/api/inventions", params={"group": group, "seed": seed}).json()["name"]
            for group, seed in SAMPLES
        ]
        learned = sorted(studio.services.spaces.of("").repository.list(), key=lambda one: one.created_at_s)
        assert [one.name for one in learned] == [mine["name"], *samples]
        assert f"<{samples[0]}>: put off, yours comes first" in said
        assert [line for line in said if "succeeded" in line] == [f"<{name}>: succeeded" for name in samples]

        # Started again, they are there; nothing is taught a second time.
        said.clear()
        teach_samples(client, say=said.append, wait_s=wait_s)
        assert said == []


def test_a_sample_that_somebody_stops_stays_stopped(studio: Server) -> None:
    said: list[str] = []
    with studio.http() as client:

        def wait_s(seconds: float) -> None:
            for job in client.get("/v1/fine_tuning/jobs").json()["data"]:
                client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")

        teach_samples(client, say=said.append, wait_s=wait_s)
    assert [line.partition(": ")[2] for line in said if ": " in line] == ["cancelled"] * len(SAMPLES)


def test_who_asks_too_often_waits_as_long_as_the_server_says(studio: Server) -> None:
    with studio.http() as client:
        while client.get("/v1/models").status_code != 429:
            pass
        teach_samples(client, say=lambda line: None, wait_s=lambda seconds: studio.train())
    assert len(studio.services.spaces.of("").repository.list()) == len(SAMPLES)
