"""The load command finds what it looks for, and nothing on a sound server."""

import asyncio
from collections.abc import Callable
from itertools import islice

import httpx
import pytest

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.weights import load_backbone
from omnifarm.cli.perf_http import http_overhead
from omnifarm.cli.perf_load import Canary, Traffic, fingerprint, load_server, wrong_answer
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import ServingError
from omnifarm.serving.engine import Engine
from omnifarm.store.memory import MemoryStore
from tests.integration.serve.conftest import CHECKPOINT, Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def keys(server: Server) -> list[str]:
    return [server.key("acme"), server.key("globex")]


def test_a_sound_server_passes(server: Server, keys: list[str]) -> None:
    report = load_server(server.url, keys=keys, seconds=5, calibrate_s=2, share=0.8, steps=3, seed=1, is_killing=False)
    assert report["passed"], report
    assert report["slots_left"] == 0
    assert report["latency_s"]
    assert all(one["first_mib"] > 0 for one in report["memory"].values())
    assert all(0 < times["p50"] <= times["p99"] for times in report["latency_s"].values())


def test_an_answer_of_another_tenant_is_recognised(server: Server, keys: list[str]) -> None:
    async def judged() -> list[str]:
        traffic = Traffic(server.url, keys=keys, steps=3, seed=0)
        async with traffic.http:
            await traffic.prepare()
            mine, theirs = traffic.canaries["drawing"]
            replies = [await traffic._post(one) for one in (mine, theirs)]
            strange = httpx.Response(200, json={"data": [{"b64_json": "AAAA"}]})
            broken = httpx.Response(500, json={})
            refused = httpx.Response(503, headers={"Retry-After": "1"}, json={})
            answers = (*replies, strange, broken, refused, httpx.Response(503, json={}))
            return [traffic._judge(mine, answer) for answer in answers]

    assert asyncio.run(judged()) == [
        "right", "of_another_tenant", "changed", "server_error", "refused", "server_error",
    ]  # fmt: skip


def test_a_word_about_somebody_elses_concept_is_recognised(server: Server, keys: list[str]) -> None:
    async def judged() -> list[list[str | None]]:
        traffic = Traffic(server.url, keys=keys, steps=3, seed=0)
        async with traffic.http:
            await traffic.prepare()
            assert {key for key, _ in traffic.foreign} == set(keys)
            # To whoever has no such concept there is none; to its own tenant, who stands for a leak, there is.
            replies = [
                [await traffic.send(request, key=key) for key in (stranger, keys[stranger == keys[0]])]
                for stranger, request in traffic.foreign
            ]
            return [[wrong_answer(reply, is_foreign=True) for reply in pair] for pair in replies]

    found = asyncio.run(judged())
    assert len(found) == 10
    assert all(pair == [None, "of_another_tenant"] for pair in found), found


def test_an_answer_to_a_hostile_request_is_judged_by_its_status() -> None:
    busy = httpx.Response(503, headers={"Retry-After": "1"})
    replies = [busy, *map(httpx.Response, (404, 429, 403, 200, 500))]
    foreign = [wrong_answer(reply, is_foreign=True) for reply in replies]
    assert foreign == [None, None, None, *(3 * ["of_another_tenant"])]
    assert [wrong_answer(reply, is_foreign=False) for reply in replies] == [
        None, None, None, None, "hostile_let_in", "server_error",
    ]  # fmt: skip


def test_a_key_that_reads_no_metrics_is_refused(server: Server) -> None:
    few = [server.key("acme", "use", "learn"), server.key("globex")]
    with pytest.raises(ServingError, match="the scope operate"):
        load_server(server.url, keys=few, seconds=1, calibrate_s=1, share=0.8, steps=3, seed=0, is_killing=False)


def test_tenants_that_could_not_be_told_apart_are_refused(server: Server, keys: list[str]) -> None:
    with pytest.raises(ServingError, match="different concepts"):
        load_server(
            server.url, keys=[keys[0]] * 2, seconds=1, calibrate_s=1, share=0.8, steps=3, seed=0, is_killing=False
        )


def test_only_what_was_said_counts() -> None:
    reply = {"id": "a", "choices": [{"message": {"content": "yes"}}]}
    assert fingerprint(reply) == fingerprint({**reply, "id": "b"})
    assert Canary(tenant=0, kind="question", path="/", content={}).expected == ""


def test_the_cost_of_http_is_measured_on_a_server_that_answers(
    server: Server, serve_with: Callable[..., Server]
) -> None:
    engine = Engine(load_backbone(CHECKPOINT), ConceptRepository(MemoryStore()))
    options = SamplingOptions(num_timesteps=3)
    overheads = http_overhead(serve_with(access="owner").url, engine=engine, options=options, each=1, turns=2)
    # How much is not asked here: both sides took time, and on a busy machine either may have taken more.
    assert len(overheads) == 2
    assert all(one > -1 for one in overheads)
    assert engine.statistics()["step_tokens"]["draw"] > 0
    with pytest.raises(ServingError, match="status 401"):
        http_overhead(server.url, engine=engine, options=options)


def test_of_every_twenty_one_leaves_early_and_one_is_hostile() -> None:
    traffic = Traffic("http://127.0.0.1:9", keys=[], steps=1, seed=0)
    dealt = list(islice(traffic.mixture(), 60))
    for start in (0, 20, 40):
        deck = dealt[start : start + 20]
        assert (deck.count(traffic.good), deck.count(traffic.leaving), deck.count(traffic.hostile)) == (18, 1, 1)
    assert dealt[:20] != dealt[20:40]
