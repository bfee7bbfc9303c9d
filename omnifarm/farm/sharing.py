"""Several jobs on one cluster: every driver says in the store what it could use, and all come to the same division.

    drivers/<driver>.json      what a driver wants, until when; renewed while it lives

Nobody divides for the others: each driver reads all demands, computes everybody's share by the same rule and keeps to
its own. A dead driver's demand runs out like a lease. Where not everybody can be served at once, turns are taken by the
clock, so clocks must agree to within seconds, as leases demand anyway.
"""

import heapq
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from omnifarm.clock import Clock
from omnifarm.errors import NotFoundError
from omnifarm.logs import event
from omnifarm.store.base import Store

PREFIX = "drivers/"
"""Keys of all demands begin with this."""
_logger = logging.getLogger(__name__)

TURN_S = 600.0
"""Seconds of one turn; a driver of priority p has p + 1 turns in a row. Long beside a cell's start, which it costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What one driver could use."""

    workers: int
    """Workers it has concepts for (>= 0)."""
    priority: int
    """From 0 to 9; a driver of priority p gets p + 1 parts where one of priority 0 gets one."""
    cell: int = 1
    """Workers that are of use only together, those of a whole cell; 1 where any number will do."""


def fair_shares(capacity: int, demands: Mapping[str, Demand], *, turn: int = 0) -> dict[str, int]:
    """Divide workers by weighted max-min fairness: nobody gets more than it wants, the rest goes to those who do.

    Shares are whole cells; what is too little for one driver's next cell goes to others. If somebody then has nothing,
    the drivers take turns at being served first, each with its first cell: whoever has a cell that the cluster can
    hold trains, sooner or later, however long the others go on.

    Args:
        capacity: Workers that the cluster can hold (>= 0).
        demands: By driver.
        turn: Number of the present turn (>= 0), the same for all: seconds since the epoch // TURN_S.

    Returns:
        Workers by driver, in whole cells; together at most `capacity`. The same for everybody who asks.
    """
    able = {name: demand for name, demand in sorted(demands.items()) if demand.workers > 0 and demand.cell <= capacity}
    shares = _divide(capacity, able, first=None)
    if not all(shares.values()):
        wheel = [name for name, demand in able.items() for _ in range(demand.priority + 1)]
        shares = _divide(capacity, able, first=wheel[turn % len(wheel)])
    return {name: shares.get(name, 0) for name in demands}


def _divide(capacity: int, demands: Mapping[str, Demand], *, first: str | None) -> dict[str, int]:
    """Give cell after cell to the driver that is served worst in relation to its weight, the first to `first`."""
    names = list(demands)
    begin = 0 if first is None else names.index(first)
    shares = dict.fromkeys(demands, 0)
    waiting = [
        # Among equals those who come after the first in the round go before those who were first not long ago.
        (0.0 if name == first else demands[name].cell / (demands[name].priority + 1), rank, name)
        for rank, name in enumerate(names[begin:] + names[:begin])
    ]
    heapq.heapify(waiting)
    while waiting:
        _, rank, name = heapq.heappop(waiting)
        demand = demands[name]
        if demand.cell > capacity:
            continue
        capacity -= demand.cell
        shares[name] += demand.cell
        if shares[name] < demand.workers:
            heapq.heappush(waiting, ((shares[name] + demand.cell) / (demand.priority + 1), rank, name))
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
        self.unreadable: frozenset[str] = frozenset()
        """Drivers whose demand could not be read at the last look: whether they live nobody knows."""

    def announce(self, driver: str, demand: Demand) -> None:
        """Say, or say again, what a driver could use."""
        values = {**asdict(demand), "expires_at_s": self._clock.now_s() + self._ttl_s}
        self._store.put(_key(driver), json.dumps(values).encode())

    def leave(self, driver: str) -> None:
        """Take a driver's demand back; safe to repeat."""
        self._store.delete(_key(driver))

    def present(self, *, tidy: bool = True) -> dict[str, Demand]:
        """Return the demands that hold now, by driver; what has run out is removed, unless not `tidy`.

        What cannot be read is logged once, noted in `unreadable`, and stays: its driver, if it lives, soon writes it anew.
        """
        found: dict[str, Demand] = {}
        unreadable = set[str]()
        for key in list(self._store.list(PREFIX)):
            driver = key[len(PREFIX) : -len(".json")]
            try:
                demand, expires_at_s = _decode(self._store.get(key).data)
            except NotFoundError:
                continue
            except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                unreadable.add(driver)
                self._note_unreadable(driver, key=key, reason=repr(error))
                continue
            if expires_at_s > self._clock.now_s():
                found[driver] = demand
            elif tidy:
                self._store.delete(key)
        self.unreadable = frozenset(unreadable)
        return found

    def _note_unreadable(self, driver: str, *, key: str, reason: str) -> None:
        if driver not in self.unreadable:
            event(
                _logger,
                "driver_demand_unreadable",
                level=logging.ERROR,
                key=key,
                expected="a driver's demand",
                found=reason,
                todo="nothing while its driver lives and is of this release; else end that driver and delete the object",
            )


def _decode(data: bytes) -> tuple[Demand, float]:
    """Return a demand and until when it holds; raises what Python does of bytes that are none, or not of this release."""
    values = json.loads(data)
    expires_at_s = values.pop("expires_at_s")
    demand = Demand(**values)
    # A cell of no worker, say, would be given out for ever.
    is_sound = demand.workers >= 0 and 0 <= demand.priority <= 9 and demand.cell >= 1 and 0 <= expires_at_s < math.inf
    if not is_sound or not all(isinstance(number, int) for number in asdict(demand).values()):
        raise ValueError(f"numbers out of range in {demand}, which holds until {expires_at_s}")
    return demand, expires_at_s


def _key(driver: str) -> str:
    return f"{PREFIX}{driver}.json"
