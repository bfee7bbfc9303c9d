"""What a concept costs in requests besides its record: pictures, checkpoint, artifact; and what a driver asks by the second.

The simulation carries the queue's requests out and takes these from here. `tests/unit/farm/test_simulation_requests.py`
holds both to what a real worker and a real driver ask of a counting store.
"""

from collections import Counter
from collections.abc import Mapping

from omnifarm.farm.cells import FleetPlan
from omnifarm.farm.control import PREFIX as CONTROL
from omnifarm.farm.index import LATER, READY
from omnifarm.farm.records import INDEX, RECORDS
from omnifarm.farm.sharing import PREFIX as DRIVERS

READY_KEYS, LATER_KEYS = f"{INDEX}{READY}", f"{INDEX}{LATER}"

_PAGE = 1000
_LIST_S = 0.05
"""Seconds of a listing of a thousand keys; sixteen records are read in as many."""
_GLANCE_S = 60.0
_DEPTHS_S = 15.0
_SHARE = 20.0
"""Whoever counts the whole queue does so a twentieth of the time at most."""

LEAST_GROWTH = 8
"""As of `CellFleet`: workers for which jobs are counted beyond those that fit."""

Requests = Counter[tuple[str, str]]
"""Numbers by kind of request and key, or listed prefix; "" for a job's own keys, which nobody shares."""


def submission_requests(photos: int) -> Counter[str]:
    """Return what a concept's submission asks besides its record's: each file read with its size first, the spec kept."""
    files = photos + 1
    return Counter(head=files, get=files, put=1)


def start_requests(photos: int, *, is_first: bool) -> Counter[str]:
    """Return what the start of a concept's lane asks: spec, checkpoint, and its pictures, prepared here or before.

    Args:
        photos: Pictures that no other concept shares.
        is_first: Whether nobody has prepared them yet.
    """
    found = Counter(get=2 + photos)
    return found + Counter(head=photos, get=photos, put=photos) if is_first else found


COMMIT_REQUESTS: Mapping[str, int] = {"head": 1, "put": 3}
"""Of an artifact; the record's own and the checkpoint's deletion are carried out."""


def look_requests(*, ready: int, held: int, capacity: int, plan: FleetPlan) -> Requests:
    """Return what a driver asks each time it looks after its cells: orders, the queue's end, demands, jobs.

    Args:
        ready: Jobs that may be leased.
        held: Jobs held or resting.
        capacity: Workers that the cluster can hold.
        plan: The driver's.
    """
    found: Requests = Counter({("list", CONTROL): 1, ("list", DRIVERS): 1, ("put", DRIVERS): 1, ("get", DRIVERS): 1})
    # Jobs are counted for twice the workers that fit, and for a few more where few fit.
    most = (capacity + max(LEAST_GROWTH, capacity, plan.workers_per_cell)) * plan.lanes
    found["list", READY_KEYS] = 1 + _pages(min(most, ready))
    if ready < most:
        found["list", LATER_KEYS] += _pages(min(most - ready, held))
    if not ready:
        found["list", LATER_KEYS] += 1
    return found


def depth_requests(*, ready: int, held: int) -> Requests:
    """Return what a driver asks to tell Prometheus how long the queue is."""
    return Counter({("list", READY_KEYS): _pages(ready), ("list", LATER_KEYS): _pages(held), ("list", ""): 1})


def glance_requests(*, jobs: int, ready: int, held: int) -> Requests:
    """Return what a driver asks to show people how far the farm is."""
    return Counter(
        {
            ("list", RECORDS): _pages(jobs),
            ("list", READY_KEYS): _pages(ready),
            ("list", LATER_KEYS): _pages(held),
            ("list", ""): 2,
            ("get", ""): held,
        }
    )


def driver_requests(
    seconds: float, *, jobs: int, ready: int, held: int, capacity: int, plan: FleetPlan
) -> dict[tuple[str, str], float]:
    """Return what a driver asks in a while in which the queue changes little, see `look_requests`; `jobs` are all records."""
    glance = glance_requests(jobs=jobs, ready=ready, held=held)
    depths = depth_requests(ready=ready, held=held)
    rows = (
        (look_requests(ready=ready, held=held, capacity=capacity, plan=plan), plan.look_s),
        (depths, max(_DEPTHS_S, depths.total() * _LIST_S * _SHARE)),
        (glance, max(_GLANCE_S, (glance.total() - held + held / 16) * _LIST_S * _SHARE)),
    )
    found: dict[tuple[str, str], float] = {}
    for requests, every_s in rows:
        for what, count in requests.items():
            found[what] = found.get(what, 0.0) + count * seconds / every_s
    return found


def _pages(keys: int) -> int:
    return max(1, -(-keys // _PAGE))
