"""Asks a system everything that is not on file yet. Knows no metric, no judge and no process but its own."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.system import Reply, System
from omnifarm.bench.tasks import UNDERSTANDING, Benchmark, Item, Task
from omnifarm.clock import Clock, SystemClock
from omnifarm.errors import OmniFarmError


def ask_all(
    system: System,
    benchmark: Benchmark,
    replies: ReplyFile,
    *,
    tasks: Sequence[Task],
    base_seed: int,
    concepts: Sequence[str] = (),
    at_once: int = 1,
    retry_failed: bool = False,
    clock: Clock | None = None,
) -> int:
    """Ask what is missing, concept by concept.

    Args:
        system: Who is asked.
        benchmark: What is asked.
        replies: Where replies go; what is there is left alone.
        tasks: Which tasks the system takes part in.
        base_seed: Seeds of items derive from it.
        concepts: Only these; empty for all. Any division of the concepts over processes gives the same replies.
        at_once: Items about one concept that are under way at the same time, each in a thread of its own; a system
            on our backbone takes them through the model together. The replies do not depend on it.
        retry_failed: Ask again what has failed, such as while an endpoint was away.
        clock: For timings.

    Returns:
        How many items were asked.
    """
    clock = clock or SystemClock()
    done = replies.done(with_failures=not retry_failed)
    asked = 0
    for concept in benchmark.concepts:
        if concepts and concept.name not in concepts:
            continue
        missing = [item for item in benchmark.items_of(concept.name, *tasks) if (concept.name, item.id) not in done]
        if not missing:
            continue
        asked += len(missing)
        spent = _Spent(clock)
        try:
            system.fit(concept)
        except OmniFarmError as error:
            for item in missing:
                replies.write(item, None, failure=f"not fitted: {error}", seed=item.seed(base_seed), at_once=at_once)
            continue
        ask = _Asking(system, benchmark, replies, base_seed=base_seed, at_once=at_once, spent=spent, clock=clock)
        with ThreadPoolExecutor(at_once) as pool:
            for _ in pool.map(ask, missing):
                pass
    return asked


class _Spent:
    """Divides the seconds of a process among its replies: each gets those since the reply before it."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._last_s = clock.monotonic_s()

    def take(self) -> float:
        with self._lock:
            now_s = self._clock.monotonic_s()
            spent_s, self._last_s = now_s - self._last_s, now_s
        return spent_s


class _Asking:
    """Asks one item and files what comes back; called from several threads."""

    def __init__(
        self,
        system: System,
        benchmark: Benchmark,
        replies: ReplyFile,
        *,
        base_seed: int,
        at_once: int,
        spent: _Spent,
        clock: Clock,
    ) -> None:
        self._system, self._benchmark, self._replies = system, benchmark, replies
        self._base_seed, self._at_once, self._spent, self._clock = base_seed, at_once, spent, clock

    def __call__(self, item: Item) -> None:
        seed = item.seed(self._base_seed)
        began_s = self._clock.monotonic_s()
        try:
            reply = self._ask(item, seed=seed)
        except OmniFarmError as error:
            self._replies.write(item, None, failure=str(error), seed=seed, at_once=self._at_once)
            return
        total_s = self._clock.monotonic_s() - began_s
        timings = {**reply.timings, "total_s": round(total_s, 4), "spent_s": round(self._spent.take(), 4)}
        self._replies.write(item, replace(reply, timings=timings), seed=seed, at_once=self._at_once)

    def _ask(self, item: Item, *, seed: int) -> Reply:
        picture = self._benchmark.picture_of(item)
        if item.task in UNDERSTANDING:
            return self._system.answer(item.text, picture)
        if item.task == "edit":
            assert picture is not None, item
            return self._system.edit(picture, item.text, seed=seed)
        return self._system.generate(item.text, seed=seed)
