"""A driver's cells: as many as its share of the cluster and its waiting concepts call for, at every moment.

    look -> demand -> share -> start cells, or tell cells to stop; ask for nodes -> look again

Cells come and go while the job runs: nodes join or die, other drivers start or finish, a cell fails and is replaced.
A cell that is told to stop saves its lanes and gives them back, so another goes on with them. Decisions are made in
`decide`, a function over numbers; `CellFleet` carries them out. Knows no Ray: a cell is a callable that returns when
the cell has ended.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from omnifarm.clock import Clock
from omnifarm.errors import FarmError, OmniFarmError, StoreError
from omnifarm.farm.control import FarmControl, Order
from omnifarm.farm.index import FAILED, LATER, READY
from omnifarm.farm.metrics import Metrics, NoMetrics
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.sharing import TURN_S, Demand, DriverRegistry, fair_shares
from omnifarm.logs import event

_logger = logging.getLogger(__name__)

_END_S = 60.0
"""Longest wait, at the end, for cells to save and to give back what they have."""
_COUNT_EVERY_S = 15.0
_COUNT_SHARE = 0.05
_LEAST_GROWTH = 8
"""Workers for which nodes are asked at once, and more on a large cluster: it doubles at most."""
_DEPTHS = {"omnifarm_queue_ready": READY, "omnifarm_queue_under_way": LATER, "omnifarm_queue_failed": FAILED}


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetPlan:
    """What a driver may run."""

    pool: str
    """Which jobs its cells train."""
    workers_per_cell: int
    """Workers of a whole cell."""
    lanes: int
    """Concepts a worker trains side by side."""
    needs_whole_cells: bool = False
    """Whether a cell is no use with fewer workers, because a share of the backbone is all that each can hold."""
    max_cells: int | None = None
    """Most cells at a time; None for as many as fit."""
    priority: int = 5
    """Weight of this driver among others, 0 to 9."""
    max_failures: int = 20
    """Cells that may fail before the driver gives up."""
    look_s: float = 2.0
    """Seconds between looks."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with cells now."""

    start: tuple[int, ...]
    """Sizes, in workers, of cells to start."""
    stop: tuple[str, ...]
    """Cells to stop."""


def decide(
    running: Sequence[tuple[str, int]], *, share: int, wanted: int, is_contested: bool, plan: FleetPlan
) -> Decision:
    """Choose cells to start and to stop.

    Args:
        running: Name and workers of every cell that runs and was not told to stop, oldest first.
        share: Workers this driver may have.
        wanted: Workers it has concepts for.
        is_contested: Whether somebody else could use what it has beyond its share, or the cluster has shrunk. If not,
            cells whose concepts get fewer are left alone until they end.
        plan: Limits.
    """
    total = sum(size for _, size in running)
    stop: list[str] = []
    if is_contested:
        for name, size in reversed(running):
            if total <= share:
                break
            stop.append(name)
            total -= size
    start: list[int] = []
    target = min(share, wanted)
    count = len(running) - len(stop)
    while total < target and not stop and (plan.max_cells is None or count < plan.max_cells):
        size = plan.workers_per_cell if plan.needs_whole_cells else min(plan.workers_per_cell, target - total)
        if total + size > share:
            break
        start.append(size)
        total += size
        count += 1
    return Decision(tuple(start), tuple(stop))


def worker_name(cell: str, rank: int) -> str:
    """Return what a cell's worker is called in leases and logs."""
    return f"{cell}-{rank}"


def cell_of(worker: str) -> str:
    """Return the cell of a worker named by `worker_name`."""
    return worker.rpartition("-")[0]


def driver_of(cell: str) -> str:
    """Return the driver of a cell that a fleet started."""
    return cell.rpartition("-")[0]


@dataclass
class _Cell:
    name: str
    size: int
    thread: threading.Thread
    error: list[Exception] = field(default_factory=list)
    is_stopping: bool = False


class CellFleet:
    """The cells of one driver.

    Args:
        driver: Its name, unique among drivers.
        plan: What it may run.
        queue: The farm's queue.
        control: How cells are told to stop.
        registry: The demands of all drivers.
        capacity: Returns how many workers the cluster can hold now.
        ask: Told at every look how many workers all drivers could use while that is more than the cluster can hold, and
            0 once it is not or the driver ends: what an autoscaler is to provide. Default: nobody is asked.
        run_cell: Runs a cell of (name, workers) until it ends; whatever it raises counts as the cell's failure.
        clock: Time.
        metrics: Where numbers go.
    """

    def __init__(
        self,
        driver: str,
        *,
        plan: FleetPlan,
        queue: JobQueue,
        control: FarmControl,
        registry: DriverRegistry,
        capacity: Callable[[], int],
        run_cell: Callable[[str, int], None],
        clock: Clock,
        ask: Callable[[int], None] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._driver = driver
        self._plan = plan
        self._queue = queue
        self._control = control
        self._registry = registry
        self._capacity = capacity
        self._run_cell = run_cell
        self._clock = clock
        self._ask = ask
        self._is_asking = False
        self._metrics = metrics or NoMetrics()
        self._order = Order.WORK
        self._cells: list[_Cell] = []
        self._stopped: list[str] = []
        self._num_started = 0
        self._num_failures = 0
        self._count_at_s = self._clock.monotonic_s()

    def run(self, *, is_over: Callable[[], bool]) -> None:
        """Keep cells running until `is_over` or the pool has nothing left to do, or the farm is told to stop.

        Raises:
            FarmError: More cells failed than the plan allows.
        """
        try:
            while True:
                try:
                    if self._is_done(is_over):
                        break
                    self._adjust()
                except StoreError as error:
                    # Workers have patience with the store; so has their driver.
                    event(_logger, "driver_without_store", level=logging.WARNING, error=str(error))
                self._clock.sleep_s(self._plan.look_s)
            self._end_cells()
        finally:
            self._leave()

    def _is_done(self, is_over: Callable[[], bool]) -> bool:
        self._reap()
        self._order = self._control.present()
        if self._order is Order.STOP or (self._order is Order.DRAIN and not self._is_holding()):
            return True
        return is_over() or self._queue.is_drained(self._plan.pool)

    def _is_holding(self) -> bool:
        """Whether a cell of this driver still has a job.

        Under a drain one without a job gets none any more, and one that was never placed would be waited for in vain.
        """
        names = {cell.name for cell in self._cells}
        if not names:
            return False
        under_way = self._queue.list(entry.job_id for entry in self._queue.index.entries(LATER, pool=self._plan.pool))
        return any(record.lease is not None and cell_of(record.lease.worker) in names for record in under_way)

    def _adjust(self) -> None:
        """Look once, and start or stop cells."""
        if self._order is Order.DRAIN:
            # A cell started now would find the order, leave and be replaced, until the last of the others has ended.
            self._request(0)
        else:
            self._follow(self._capacity())
        self._metrics.gauge("omnifarm_cells", len(self._cells))
        self._report_depths()

    def _follow(self, capacity: int) -> None:
        """Bring cells to what is this driver's of a cluster that holds `capacity` workers."""
        plan = self._plan
        reach = capacity + max(_LEAST_GROWTH, capacity, plan.workers_per_cell)
        wanted = self._wanted(reach)
        unit = plan.workers_per_cell if plan.needs_whole_cells else 1
        self._registry.announce(self._driver, Demand(workers=wanted, priority=plan.priority, cell=unit))
        demands = self._registry.present()
        # All drivers ask for the same, what all of them want, because an autoscaler hears only who asked last.
        asked = min(reach, sum(demand.workers for demand in demands.values()))
        self._request(asked if asked > capacity else 0)
        share = fair_shares(capacity, demands, turn=int(self._clock.now_s() // TURN_S)).get(self._driver, 0)
        running = [(cell.name, cell.size) for cell in self._cells if not cell.is_stopping]
        is_contested = len(demands) > 1 or sum(size for _, size in running) > capacity
        decision = decide(running, share=share, wanted=wanted, is_contested=is_contested, plan=plan)
        for name in decision.stop:
            self._stop(name)
        for size in decision.start:
            self._start(size)

    def _report_depths(self) -> None:
        """Count the whole queue now and then: a request per thousand jobs, at most a twentieth of the time."""
        began_s = self._clock.monotonic_s()
        if began_s < self._count_at_s:
            return
        for name, kind in _DEPTHS.items():
            self._metrics.gauge(name, sum(1 for _ in self._queue.index.entries(kind)))
        ended_s = self._clock.monotonic_s()
        self._count_at_s = ended_s + max(_COUNT_EVERY_S, (ended_s - began_s) / _COUNT_SHARE)

    def _request(self, workers: int) -> None:
        # Said again at each look, since others may have spoken; taken back once, since others may still be asking.
        if self._ask is not None and (workers or self._is_asking):
            self._ask(workers)
        self._is_asking = workers > 0

    def _wanted(self, reach: int) -> int:
        """Return how many workers there are concepts for and cells allowed, counted up to `reach` workers."""
        plan, index = self._plan, self._queue.index
        most = reach * plan.lanes
        unfinished = index.count_up_to(most, READY, pool=plan.pool)
        if unfinished < most:
            unfinished += index.count_up_to(most - unfinished, LATER, pool=plan.pool)
        wanted = -(-unfinished // plan.lanes)
        if plan.needs_whole_cells:
            wanted = -(-wanted // plan.workers_per_cell) * plan.workers_per_cell
        return wanted if plan.max_cells is None else min(wanted, plan.max_cells * plan.workers_per_cell)

    def _start(self, size: int) -> None:
        name = f"{self._driver}-{self._num_started}"  # taken apart again by `driver_of`
        self._num_started += 1
        cell = _Cell(name=name, size=size, thread=threading.Thread(target=lambda: self._work(cell), daemon=True))
        self._cells.append(cell)
        event(_logger, "cell_started", cell=name, workers=size)
        cell.thread.start()

    def _work(self, cell: _Cell) -> None:
        try:
            self._run_cell(cell.name, cell.size)
        except Exception as error:  # noqa: BLE001 - a full disk, say: uncounted, the cell would be replaced for ever
            cell.error.append(error)

    def _stop(self, name: str) -> None:
        event(_logger, "cell_told_to_stop", cell=name)
        self._control.order(Order.STOP, cell=name)
        self._stopped.append(name)
        for cell in self._cells:
            cell.is_stopping |= cell.name == name

    def _reap(self) -> None:
        """Forget cells that have ended; count those that broke."""
        for cell in [cell for cell in self._cells if not cell.thread.is_alive()]:
            self._cells.remove(cell)
            for error in cell.error:
                self._num_failures += 1
                # Others say only with their kind what they mean: KeyError's text is a key.
                reason = str(error) if isinstance(error, OmniFarmError) else f"{type(error).__name__}: {error}"
                event(_logger, "cell_failed", level=logging.WARNING, cell=cell.name, error=reason)
                if self._num_failures > self._plan.max_failures:
                    raise FarmError(f"{self._num_failures} cells failed, the last because: {reason}") from error

    def _end_cells(self) -> None:
        """Wait for cells that have nothing left to do; tell those to stop that still work for others."""
        is_drained = self._queue.is_drained(self._plan.pool)
        for cell in list(self._cells):
            if not is_drained and not cell.is_stopping:
                self._stop(cell.name)
        until_s = self._clock.monotonic_s() + _END_S
        for cell in self._cells:
            # A cell that cannot be placed any more never ends; it goes with this process.
            cell.thread.join(timeout=max(0.0, until_s - self._clock.monotonic_s()))

    def _leave(self) -> None:
        self._request(0)
        try:
            self._registry.leave(self._driver)
            for name in self._stopped:
                self._control.resume(cell=name)
        except StoreError as error:
            event(_logger, "driver_left_without_word", level=logging.WARNING, error=str(error))
