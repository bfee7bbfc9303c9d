"""`omnifarm perf queue`: how many leases a second, and what a lease costs in a short and in a long queue."""

import contextlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.progress import Progress

from omnifarm.cli.local_seaweedfs import LocalSeaweedFS, environment_variables
from omnifarm.cli.output import people
from omnifarm.clock import SystemClock
from omnifarm.farm.index import READY
from omnifarm.farm.job import JobIdentity, pool_of
from omnifarm.farm.queue import JobQueue
from omnifarm.store.base import Store
from omnifarm.store.counting import CountingStore
from omnifarm.store.open import open_store

_RECIPE, _BACKBONE = "perf-queue-recipe", "perf-queue-backbone"
POOL = pool_of(recipe_digest=_RECIPE, backbone_fingerprint=_BACKBONE)
_TTL_S = 600.0


def measure_queue(
    *, lengths: Sequence[int], num_workers: int, leases_per_worker: int, store: str | None
) -> dict[str, Any]:
    """Lease from queues of several lengths with many workers at once.

    Args:
        lengths: Jobs queued before each measurement, ascending; the queue grows from one to the next.
        num_workers: Workers leasing at the same time, each with a queue of its own.
        leases_per_worker: Leases each of them takes, one at a time.
        store: URL of a store to measure on, where everything is written under a random prefix and deleted again; None
            starts a SeaweedFS here.

    Returns:
        By length: leases per second over all workers, median and 99th percentile of one lease in seconds, requests
        per lease; and the ratio of the costs at the greatest and least length.
    """
    with contextlib.ExitStack() as stack:
        url = store.rstrip("/") if store else stack.enter_context(_seaweedfs())
        opened = open_store(f"{url}/perf-queue-{secrets.token_hex(4)}")
        try:
            rows, filled = [], 0
            for length in sorted(lengths):
                # What the measurement before took away is filled up again.
                waiting = _count_ready(opened)
                _fill(opened, first=filled, count=length - waiting)
                filled += length - waiting
                rows.append(_measure(opened, length, num_workers=num_workers, leases_per_worker=leases_per_worker))
                people.print(
                    f"{length:>8} queued: {rows[-1]['leases_per_s']:.1f} leases/s, median "
                    f"{rows[-1]['median_s'] * 1000:.0f} ms, {rows[-1]['requests_per_lease']:.2f} requests a lease"
                )
        finally:
            if store:
                _delete_all(opened)
    return {
        "store": "SeaweedFS on loopback" if store is None else opened.url,
        "cpus": os.cpu_count(),
        "workers": num_workers,
        "queued": {str(row.pop("queued")): row for row in rows},
        "requests_ratio": round(rows[-1]["requests_per_lease"] / rows[0]["requests_per_lease"], 3),
        "time_ratio": round(rows[-1]["median_s"] / rows[0]["median_s"], 3),
    }


def _measure(store: Store, length: int, *, num_workers: int, leases_per_worker: int) -> dict[str, Any]:
    counted = CountingStore(store)
    queues = [JobQueue(counted, clock=SystemClock()) for _ in range(num_workers)]
    for number, queue in enumerate(queues):
        # A worker's first look includes one at the held jobs; that comes once in a quarter of a lease, not once a lease.
        queue.lease_next(f"worker-{number}", pool=POOL, ttl_s=_TTL_S)
    counted.reset()
    barrier = threading.Barrier(num_workers + 1)

    def work(number: int) -> list[float]:
        took = []
        barrier.wait()
        for _ in range(leases_per_worker):
            began_s = time.perf_counter()
            leased = queues[number].lease_next(f"worker-{number}", pool=POOL, ttl_s=_TTL_S)
            took.append(time.perf_counter() - began_s)
            assert len(leased) == 1, "a queue longer than all leases together always has one more"
        return took

    with ThreadPoolExecutor(num_workers) as pool:
        working = [pool.submit(work, number) for number in range(num_workers)]
        barrier.wait()
        began_s = time.perf_counter()
        took = sorted(one for each in working for one in each.result())
        passed_s = time.perf_counter() - began_s
    return {
        "queued": length,
        "leases": len(took),
        "leases_per_s": round(len(took) / passed_s, 2),
        "median_s": round(took[len(took) // 2], 4),
        "p99_s": round(took[int(len(took) * 0.99)], 4),
        "requests_per_lease": round(counted.total / len(took), 3),
        "requests": dict(counted.requests),
    }


def _fill(store: Store, *, first: int, count: int) -> None:
    queue = JobQueue(store, clock=SystemClock())

    def submit(number: int) -> None:
        identity = JobIdentity(spec_digest=str(number), recipe_digest=_RECIPE, backbone_fingerprint=_BACKBONE)
        queue.submit(name=f"c{number}", concept_url="nowhere", identity=identity, num_steps=1)

    with Progress(console=people) as progress, ThreadPoolExecutor(32) as pool:
        task = progress.add_task("filling the queue", total=count)
        for _ in pool.map(submit, range(first, first + count)):
            progress.advance(task)


def _count_ready(store: Store) -> int:
    return sum(1 for _ in JobQueue(store, clock=SystemClock()).index.entries(READY, pool=POOL))


def _delete_all(store: Store) -> None:
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(store.delete, list(store.list())))


@contextlib.contextmanager
def _seaweedfs() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="omf-perf-") as folder:
        server = LocalSeaweedFS(Path(folder), bucket="perf")
        try:
            server.start()
            with environment_variables(server.environment()):
                yield f"s3://{server.bucket}"
        finally:
            server.kill()
