"""Several jobs on one cluster: every driver says in the store what it could use, and all come to the same division.

    drivers/<driver>.json      what a driver wants, until when; renewed while it lives

Nobody divides for the others: each driver reads all demands, computes everybody's share by the same rule and keeps to
its own. A dead driver's demand runs out like a lease.
"""

import heapq
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from omnifarm.clock import Clock
from omnifarm.errors import NotFoundError
from omnifarm.store.base import Store

PREFIX = "drivers/"
"""Keys of all demands begin with this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What one driver could use."""

    workers: int
    """Workers it has concepts for (>= 0)."""
    priority: int
    """From 0 to 9; a driver of priority p gets p + 1 parts where one of priority 0 gets one."""


def fair_shares(capacity: int, demands: Mapping[str, Demand]) -> dict[str, int]:
    """Divide workers by weighted max-min fairness: nobody gets more than it wants, the rest goes to those who do.

    Args:
        capacity: Workers that the cluster can hold (>= 0).
        demands: By driver.

    Returns:
        Whole workers by driver; together at most `capacity`. The same for everybody who asks.
    """
    shares = dict.fromkeys(demands, 0)
    # The driver that is served worst in relation to its weight gets the next worker.
    waiting = [(1 / (demand.priority + 1), name) for name, demand in sorted(demands.items()) if demand.workers > 0]
    heapq.heapify(waiting)
    for _ in range(capacity):
        if not waiting:
            break
        _, name = heapq.heappop(waiting)
        shares[name] += 1
        if shares[name] < demands[name].workers:
            heapq.heappush(waiting, ((shares[name] + 1) / (demands[name].priority + 1), name))
    return shares


class DriverRegistry:
    """The demands of all drivers of a farm. Safe to share.

    Args:
        store: The farm's store.
        clock: Tells which demands have run out.
        ttl_s: Seconds for which a demand holds.
    """

    def __init__(self, store: Store, *, clock: Clock, ttl_s: float = 60.0) -> None:
        self._store = store
        self._clock = clock
        self._ttl_s = ttl_s

    def announce(self, driver: str, demand: Demand) -> None:
        """Say, or say again, what a driver could use."""
        values = {**asdict(demand), "expires_at_s": self._clock.now_s() + self._ttl_s}
        self._store.put(_key(driver), json.dumps(values).encode())

    def leave(self, driver: str) -> None:
        """Take a driver's demand back; safe to repeat."""
        self._store.delete(_key(driver))

    def present(self) -> dict[str, Demand]:
        """Return the demands that hold now; what has run out is removed."""
        found: dict[str, Demand] = {}
        for key in list(self._store.list(PREFIX)):
            driver = key[len(PREFIX) : -len(".json")]
            try:
                values = json.loads(self._store.get(key).data)
            except NotFoundError:
                continue
            if values.pop("expires_at_s") > self._clock.now_s():
                found[driver] = Demand(**values)
            else:
                self._store.delete(key)
        return found


def _key(driver: str) -> str:
    return f"{PREFIX}{driver}.json"
