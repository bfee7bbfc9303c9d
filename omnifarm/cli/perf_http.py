"""The cost of HTTP: the same drawings through a running server and through an engine in this process.

On both sides eight are under way at all times: whoever has its picture asks for the next.
"""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import httpx

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.errors import ServingError
from omnifarm.serving.engine import Engine
from omnifarm.serving.events import Ticket
from omnifarm.serving.requests import Request

_CONCURRENCY = 8
_ROUNDS = 2
_TIMEOUT_S = 600.0


def http_overhead(url: str, *, engine: Engine, options: SamplingOptions, each: int = 12) -> float:
    """Return by which part drawings at concurrency 8 take longer over HTTP.

    Args:
        url: A server that is otherwise idle, on this machine, with the engine's backbone and number of threads, and
            open to its own machine without a key (`OMNIFARM_ACCESS=owner`).
        engine: The side without HTTP.
        options: Steps and guidance.
        each: Drawings that each of those eight asks for in a turn; so many by default that beginning and end, when fewer
            than eight are under way, count little.

    Raises:
        ServingError: The server does not answer with a picture.
    """
    height, width = engine.generation_size
    body = {
        "prompt": "A photo of a dog in the park.",
        "size": f"{width}x{height}",
        "replay": "off",
        **asdict(options),
    }

    def draw_some(client_index: int) -> None:
        for turn in range(each):
            reply = client.post("/v1/images/generations", json={**body, "seed": each * client_index + turn})
            if reply.status_code != httpx.codes.OK:
                raise ServingError(
                    f"expected a picture from {url}, found status {reply.status_code}: {reply.text[:200]}"
                )

    def request(seed: int) -> Request:
        return engine.door.generate(str(body["prompt"]), size=(height, width), options=options, seed=seed, replay="off")

    over_http, in_process = [], []
    with ThreadPoolExecutor(_CONCURRENCY) as pool, httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
        for turn in range(_ROUNDS + 1):
            started = time.perf_counter()
            list(pool.map(draw_some, range(_CONCURRENCY)))
            between = time.perf_counter()
            _run_in_process(engine, [request(seed) for seed in range(_CONCURRENCY * each)])
            if turn:
                over_http.append(between - started)
                in_process.append(time.perf_counter() - between)
    return round(statistics.median(over_http) / statistics.median(in_process) - 1, 4)


def _run_in_process(engine: Engine, requests: Sequence[Request]) -> None:
    """Keep `_CONCURRENCY` requests under way until all are done."""
    waiting, running = deque(requests), list[Ticket]()
    while waiting or running:
        running = [ticket for ticket in running if not ticket.is_done]
        while waiting and len(running) < _CONCURRENCY:
            running.append(engine.submit(waiting.popleft()))
        engine.step()
