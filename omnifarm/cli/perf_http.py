"""The cost of HTTP: the same drawings through a running server and through an engine in this process.

On both sides eight callers are under way at all times, and whoever has its picture asks for the next; the engine has a
thread of its own in this process as it has there. The sides take turns, and each turn is compared with the one beside
it, because the speed of a machine drifts by more than is to be measured; many short turns say more than few long ones.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict

import httpx

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.errors import ServingError
from omnifarm.serving.engine import Engine
from omnifarm.serving.requests import Request
from omnifarm.serving.worker import EngineWorker

_CONCURRENCY = 8
_TIMEOUT_S = 600.0


def http_overhead(url: str, *, engine: Engine, options: SamplingOptions, each: int = 2, turns: int = 12) -> list[float]:
    """Return by which part drawings at concurrency 8 take longer over HTTP, one number a pair of turns.

    Args:
        url: A server that is otherwise idle, on this machine, with the engine's backbone and number of threads, and
            open to its own machine without a key (`OMNIFARM_ACCESS=owner`).
        engine: The side without HTTP; nobody else may be using it.
        options: Steps and guidance.
        each: Drawings that each of those eight asks for in a turn.
        turns: Pairs of turns, after one that is not counted.

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

    def draw_some(caller: int) -> None:
        for seed in range(each * caller, each * (caller + 1)):
            reply = client.post("/v1/images/generations", json={**body, "seed": seed})
            if reply.status_code != httpx.codes.OK:
                raise ServingError(
                    f"expected a picture from {url}, found status {reply.status_code}: {reply.text[:200]}"
                )

    def request(seed: int) -> Request:
        return engine.door.generate(str(body["prompt"]), size=(height, width), options=options, seed=seed, replay="off")

    async def draw_some_here(caller: int) -> None:
        for seed in range(each * caller, each * (caller + 1)):
            await worker.run(request(seed))

    async def draw_here() -> None:
        await asyncio.gather(*map(draw_some_here, range(_CONCURRENCY)))

    with (
        # Closed after the pool's threads have ended: a socket that another thread closes leaves its reader waiting.
        httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client,
        ThreadPoolExecutor(_CONCURRENCY) as pool,
        closing(EngineWorker(engine)) as worker,
    ):
        overheads = []
        for turn in range(1 + turns):
            sides = [
                lambda: _seconds(lambda: list(pool.map(draw_some, range(_CONCURRENCY)))),
                lambda: _seconds(lambda: asyncio.run(draw_here())),
            ]
            # Each side is the first of every second pair, so that a drift of the machine favours neither.
            order = (0, 1) if turn % 2 else (1, 0)
            seconds = {side: sides[side]() for side in order}
            if turn:
                overheads.append(round(seconds[0] / seconds[1] - 1, 4))
    return overheads


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
