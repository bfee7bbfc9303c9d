"""`omnifarm perf load`: mixed traffic of several tenants against a running server, and what it did not do wrong.

Every request of a well-behaved client is a canary: its answer was asked for once before, alone, and must come back the
same whoever it shares a batch with. An answer that is another tenant's instead would be a leak, and so would anything but
"no such concept" for a request that names a concept only another tenant has.
"""

import asyncio
import hashlib
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from omnifarm.cli.output import people
from omnifarm.cli.perf_load_hostile import HOSTILE, Hostile, a_picture, about_somebody_elses
from omnifarm.cli.perf_load_memory import MemoryLog
from omnifarm.errors import ServingError

_KINDS = (("question", 6), ("drawing", 3), ("edit", 1))
_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """A request and the answer it must get."""

    tenant: int
    """Whose it is."""
    kind: str
    """question, drawing or edit."""
    path: str
    """Endpoint."""
    content: dict[str, Any] = field(repr=False)
    """Body, as httpx takes it."""
    expected: str = ""
    """Digest of the answer."""


@dataclass(kw_only=True, slots=True)
class Tally:
    """What happened; mutable."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """By name; see `Traffic`."""
    hostile: Counter[int] = field(default_factory=Counter)
    """Answers to hostile requests by status."""
    foreign: int = 0
    """How many of these were about a concept that only another tenant has."""
    latencies: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of right answers by kind."""
    examples: list[str] = field(default_factory=list)
    """The first few answers that were wrong."""


class Traffic:
    """Tenants of one server and the requests they make.

    Args:
        url: Where the server listens.
        keys: One key for each tenant, with every scope.
        steps: Denoising steps of a picture.
        seed: Of everything that is drawn by lot.
    """

    def __init__(self, url: str, *, keys: list[str], steps: int, seed: int) -> None:
        self._keys = keys
        self._steps = steps
        self.chance = random.Random(seed)
        limits = httpx.Limits(max_connections=512)
        self.http = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits)
        self.canaries: dict[str, list[Canary]] = {}
        self.foreign: list[tuple[str, Hostile]] = []
        """Requests about a concept that only another tenant has, each with the key of one that has not."""

    async def prepare(self) -> None:
        """Ask every canary alone and remember the answer.

        Raises:
            ServingError: A tenant has no concept, two tenants get the same pictures or every tenant has the same names, so
                that a leak would not show; or the first key cannot read the server's metrics.
        """
        reply = await self.http.get("/metrics", headers=_auth(self._keys[0]))
        if reply.status_code == 403:
            raise ServingError(
                "expected the first key to have the scope operate, for what the server holds, found one without; make "
                "another with `omnifarm tenant add-key NAME --scope use --scope learn --scope operate`"
            )
        names_of: list[list[str]] = []
        for tenant, key in enumerate(self._keys):
            reply = await self.http.get("/v1/concepts", headers=_auth(key))
            names = [entry["name"] for entry in reply.json().get("data", [])]
            if not names:
                raise ServingError(f"expected tenant {tenant + 1} to have a concept, found none; train one first")
            names_of.append(names)
            for canary in self._canaries(tenant, names[0]):
                answer = await self._post(canary)
                if answer.status_code != 200:
                    raise ServingError(f"expected an answer from {canary.path}, found {answer.text[:300]}")
                known = Canary(
                    tenant=tenant,
                    kind=canary.kind,
                    path=canary.path,
                    content=canary.content,
                    expected=fingerprint(answer.json()),
                )
                self.canaries.setdefault(canary.kind, []).append(known)
        pictures = [canary.expected for canary in self.canaries["drawing"]]
        if len(set(pictures)) < len(pictures):
            raise ServingError("expected tenants with different concepts, found two that draw the same picture")
        for key, own in zip(self._keys, names_of, strict=True):
            # One name of each other tenant, if it has one of its own.
            strange = {next((name for name in names if name not in own), "") for names in names_of} - {""}
            self.foreign += [(key, request) for name in sorted(strange) for request in about_somebody_elses(name)]
        if len(self._keys) > 1 and not self.foreign:
            raise ServingError("expected a tenant with a concept that another has not, found none; learn one more")

    async def good(self, tally: Tally) -> None:
        """Make a request and check its answer."""
        canary = self._any()
        started = time.perf_counter()
        try:
            reply = await self._post(canary)
        except httpx.HTTPError as error:
            tally.outcomes["lost"] += 1
            tally.examples.append(type(error).__name__)
            return
        outcome = self._judge(canary, reply)
        tally.outcomes[outcome] += 1
        if outcome == "right":
            tally.latencies.setdefault(canary.kind, []).append(time.perf_counter() - started)
        elif outcome not in ("refused", "rate_limited") and len(tally.examples) < 10:
            tally.examples.append(f"{outcome} {canary.path} {reply.status_code} {reply.text[:200]}")

    async def leaving(self, tally: Tally) -> None:
        """Make a request and leave before the answer."""
        canary = self._any()
        try:
            await self._post(canary, timeout_s=self.chance.uniform(0.01, 0.3))
        except httpx.TimeoutException:
            tally.outcomes["left"] += 1
        except httpx.HTTPError:
            tally.outcomes["lost"] += 1
        else:
            tally.outcomes["right_before_leaving"] += 1

    async def hostile(self, tally: Tally) -> None:
        """Send something no well-meaning client sends; anything but a clean refusal counts against the server."""
        number = self.chance.randrange(len(HOSTILE) + len(self.foreign))
        is_foreign = number >= len(HOSTILE)
        if is_foreign:
            key, request = self.foreign[number - len(HOSTILE)]
        else:
            key, request = self.chance.choice(self._keys), HOSTILE[number]
        try:
            reply = await self.send(request, key=key)
        except httpx.HTTPError as error:
            tally.outcomes["lost"] += 1
            tally.examples.append(f"hostile {request[1]} {type(error).__name__}")
            return
        tally.hostile[reply.status_code] += 1
        tally.foreign += is_foreign
        wrong = wrong_answer(reply, is_foreign=is_foreign)
        if wrong is not None:
            tally.outcomes[wrong] += 1
            tally.examples.append(f"hostile {request[1]} {reply.status_code} {reply.text[:200]}")

    async def send(self, request: Hostile, *, key: str) -> httpx.Response:
        """Send a hostile request with a tenant's key, unless it brings its own."""
        method, path, content = request
        return await self.http.request(
            method, path, **{**content, "headers": {**_auth(key), **content.get("headers", {})}}
        )

    def mixture(self) -> Iterator[Callable[[Tally], Coroutine[Any, Any, None]]]:
        """Deal what to do next, for ever: of every twenty, in random order, one leaves early and one is hostile."""
        while True:
            deck = [self.leaving, self.hostile, *(18 * [self.good])]
            self.chance.shuffle(deck)
            yield from deck

    async def figures(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Return the server's metrics by name; nothing while it has no replica to tell them."""
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        try:
            reply = await self.http.get("/metrics", headers=_auth(self._keys[0]))
        except httpx.HTTPError:
            return found
        for line in reply.text.splitlines() if reply.status_code == 200 else ():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                bare, _, labels = name.partition("{")
                pairs = dict(part.split("=", 1) for part in labels.rstrip("}").split(",") if "=" in part)
                found.setdefault(bare, []).append(({k: v.strip('"') for k, v in pairs.items()}, float(value)))
        return found

    def _any(self) -> Canary:
        kind = self.chance.choices([kind for kind, _ in _KINDS], [weight for _, weight in _KINDS])[0]
        return self.chance.choice(self.canaries[kind])

    def _judge(self, canary: Canary, reply: httpx.Response) -> str:
        if _is_refusal(reply):
            return "refused"
        if reply.status_code == 429:
            return "rate_limited"
        if reply.status_code >= 500:
            return "server_error"
        if reply.status_code != 200:
            return "wrongly_refused"
        found = fingerprint(reply.json())
        if found == canary.expected:
            return "right"
        others = {one.expected for one in self.canaries[canary.kind] if one.tenant != canary.tenant}
        return "of_another_tenant" if found in others else "changed"

    async def _post(self, canary: Canary, *, timeout_s: float = _TIMEOUT_S) -> httpx.Response:
        headers = _auth(self._keys[canary.tenant])
        return await self.http.post(canary.path, headers=headers, timeout=timeout_s, **canary.content)

    def _canaries(self, tenant: int, name: str) -> list[Canary]:
        question = {"messages": [{"role": "user", "content": f"Who is <{name}>?"}], "max_tokens": 12}
        sampling = {"num_timesteps": self._steps, "seed": 7}
        drawing = {"prompt": f"A photo of <{name}>.", "replay": "off", **sampling}
        edit = {
            "data": {"prompt": f"remove <{name}>", **sampling},
            "files": {"image": ("a.png", a_picture(), "image/png")},
        }
        return [
            Canary(tenant=tenant, kind="question", path="/v1/chat/completions", content={"json": question}),
            Canary(tenant=tenant, kind="drawing", path="/v1/images/generations", content={"json": drawing}),
            Canary(tenant=tenant, kind="edit", path="/v1/images/edits", content=edit),
        ]


def fingerprint(reply: dict[str, Any]) -> str:
    """Return a digest of what was answered, without what differs from time to time."""
    said = reply["choices"][0]["message"]["content"] if "choices" in reply else reply["data"][0]["b64_json"]
    return hashlib.sha256(said.encode()).hexdigest()


def wrong_answer(reply: httpx.Response, *, is_foreign: bool) -> str | None:
    """Return what is wrong with the answer to a hostile request, or None for a clean refusal.

    Args:
        reply: The answer.
        is_foreign: Whether the request is about a concept that only another tenant has: whatever is said of it but that
            it does not exist is another tenant's, unless nobody had looked (too busy, too fast).
    """
    if _is_refusal(reply) or (400 <= reply.status_code < 500 and not is_foreign):
        return None
    if is_foreign:
        return None if reply.status_code in (404, 429) else "of_another_tenant"
    return "hostile_let_in" if reply.status_code < 500 else "server_error"


async def run_load(
    traffic: Traffic, *, seconds: float, calibrate_s: float, share: float, is_killing: bool
) -> dict[str, Any]:
    """Find the server's capacity, load it to a share of that, and report.

    Args:
        traffic: Prepared here.
        seconds: Length of the run.
        calibrate_s: Seconds of full load before.
        share: Of the capacity that is used.
        is_killing: Whether to kill one replica (a process of this machine) midway.

    Returns:
        Counts, latencies, memory; `passed` says whether nothing went wrong.
    """
    await traffic.prepare()
    capacity = await _capacity(traffic, seconds=calibrate_s)
    rate = share * capacity
    people.print(f"capacity {capacity:.2f} requests/s; loading with {rate:.2f} for {seconds:.0f} s")
    before = await traffic.figures()
    tally, open_tasks = Tally(), set[asyncio.Task[None]]()
    memory = MemoryLog()
    watching = asyncio.ensure_future(_watch(traffic, memory, every_s=max(1.0, seconds / 120)))
    started = time.perf_counter()
    mixture = traffic.mixture()
    has_killed = not is_killing
    while (now := time.perf_counter() - started) < seconds:
        if not has_killed and now > seconds / 2:
            has_killed = True
            os.kill(int(before["omnifarm_replica_pid"][0][1]), signal.SIGKILL)
        await asyncio.sleep(traffic.chance.expovariate(rate))
        task = asyncio.ensure_future(next(mixture)(tally))
        open_tasks.add(task)
        task.add_done_callback(open_tasks.discard)
    await asyncio.gather(*open_tasks)
    watching.cancel()
    slots = await _slots_left(traffic)
    wrong = ("server_error", "changed", "of_another_tenant", "wrongly_refused", "hostile_let_in")
    # What a dying replica had begun to stream, or was reading, is lost with it.
    allowed_lost = 64 if is_killing else 0
    return {
        "passed": not any(tally.outcomes[name] for name in wrong)
        and tally.outcomes["lost"] <= allowed_lost
        and slots == 0
        and not memory.has_leak()
        and tally.outcomes["right"] > 0,
        "seconds": round(seconds),
        "tenants": len(traffic.canaries["drawing"]),
        "capacity_rps": round(capacity, 3),
        "rate_rps": round(rate, 3),
        "outcomes": {name: tally.outcomes[name] for name in sorted({*tally.outcomes, *wrong, "lost"})},
        "hostile_about_foreign_concepts": tally.foreign,
        "hostile_by_status": {str(status): count for status, count in sorted(tally.hostile.items())},
        "latency_s": {kind: _quantiles(values) for kind, values in sorted(tally.latencies.items())},
        "memory": memory.report(),
        "memory_growth": memory.growth(),
        "slots_left": slots,
        "replica_killed": is_killing,
        "examples": tally.examples[:10],
    }


def load_server(
    url: str,
    *,
    keys: list[str],
    seconds: float,
    calibrate_s: float,
    share: float,
    steps: int,
    seed: int,
    is_killing: bool,
) -> dict[str, Any]:
    """Run `run_load` on its own; arguments as there and in `Traffic`."""

    async def run() -> dict[str, Any]:
        traffic = Traffic(url, keys=keys, steps=steps, seed=seed)
        async with traffic.http:
            return await run_load(traffic, seconds=seconds, calibrate_s=calibrate_s, share=share, is_killing=is_killing)

    return asyncio.run(run())


async def _capacity(traffic: Traffic, *, seconds: float, clients: int = 8) -> float:
    """Requests a second with `clients` that ask again as soon as they are answered."""
    tally = Tally()
    until = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < until:
            await traffic.good(tally)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    if not tally.outcomes["right"]:
        raise ServingError(f"expected right answers under load, found {dict(tally.outcomes)}: {tally.examples[:3]}")
    return tally.outcomes["right"] / (time.perf_counter() - started)


async def _watch(traffic: Traffic, memory: MemoryLog, *, every_s: float) -> None:
    while True:
        memory.note(await traffic.figures())
        await asyncio.sleep(every_s)


async def _slots_left(traffic: Traffic, *, patience_s: float = 60.0) -> int:
    """Requests the engines still hold once nobody asks any more."""
    until = time.perf_counter() + patience_s
    while True:
        figures = await traffic.figures()
        names = ("omnifarm_engine_running", "omnifarm_engine_waiting")
        held = int(sum(value for name in names for _, value in figures.get(name, [({}, 1.0)])))
        if held == 0 or time.perf_counter() > until:
            return held
        await asyncio.sleep(0.5)


def _is_refusal(reply: httpx.Response) -> bool:
    return reply.status_code == 503 and "retry-after" in reply.headers


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
    }


def _auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
