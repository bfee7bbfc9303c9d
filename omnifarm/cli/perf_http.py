"""The cost of HTTP: the same drawings through a running server and through an engine in this process."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import httpx

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.errors import ServingError
from omnifarm.serving.engine import Engine

_CONCURRENCY = 8
_ROUNDS = 3
_TIMEOUT_S = 600.0


def http_overhead(url: str, *, engine: Engine, options: SamplingOptions) -> float:
    """Return by which part drawings at concurrency 8 take longer over HTTP.

    Args:
        url: A server that is otherwise idle, on this machine, with the engine's backbone and number of threads, and
            open to its own machine without a key (`OMNIFARM_ACCESS=owner`).
        engine: The side without HTTP.
        options: Steps and guidance.

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

    def draw(seed: int) -> None:
        reply = client.post("/v1/images/generations", json={**body, "seed": seed})
        if reply.status_code != httpx.codes.OK:
            raise ServingError(f"expected a picture from {url}, found status {reply.status_code}: {reply.text[:200]}")

    over_http, in_process = [], []
    with ThreadPoolExecutor(_CONCURRENCY) as pool, httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
        for turn in range(_ROUNDS + 1):
            started = time.perf_counter()
            list(pool.map(draw, range(_CONCURRENCY)))
            between = time.perf_counter()
            for seed in range(_CONCURRENCY):
                engine.submit(
                    engine.door.generate(
                        str(body["prompt"]), size=(height, width), options=options, seed=seed, replay="off"
                    )
                )
            while engine.step():
                pass
            if turn:
                over_http.append(between - started)
                in_process.append(time.perf_counter() - between)
    return round(statistics.median(over_http) / statistics.median(in_process) - 1, 4)
