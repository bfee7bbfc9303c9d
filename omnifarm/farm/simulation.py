"""A farm of thousands of devices in one process: the real queue, planner and policies under a simulated clock.

What is simulated: devices that step, fail and are pre-empted, and the time everything takes. What is real: job records,
index, leases, heartbeats, take-overs, retries, cells and shares; they run against a store in memory that counts requests.
Pictures, artifacts and checkpoints are counted and not kept (`farm/simulation_requests.py`). A device's time is useful when its step belongs to a commit, and
lost when it loads a backbone, repeats steps since a checkpoint, waits, or is idle at the end.
"""

import heapq
import itertools
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omnifarm.farm.cells import FleetPlan, decide
from omnifarm.farm.control import PREFIX as CONTROL
from omnifarm.farm.job import JobIdentity, JobRecord, LeaseLostError, pool_of
from omnifarm.farm.planner import plan_cells
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import checkpoint_key
from omnifarm.farm.sharing import Demand, fair_shares
from omnifarm.farm.simulation_config import SimulationConfig
from omnifarm.farm.simulation_requests import (
    COMMIT_REQUESTS,
    driver_requests,
    start_requests,
    submission_requests,
)
from omnifarm.farm.simulation_store import SimulatedStore

_POOL = pool_of(recipe_digest="simulated", backbone_fingerprint="simulated")
_DRIVER_S = 60.0
"""Seconds of a driver's requests that are counted at a time."""


class EventClock:
    """Time as the simulation has it; nobody sleeps here."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        """See `Clock.now_s`."""
        return 1e9 + self.time_s

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return self.time_s

    def sleep_s(self, duration_s: float) -> None:
        """Refuse: a simulation schedules."""
        raise AssertionError("simulated time is moved by events")


class _Quiet:
    def emit(self, name: str, **fields: Any) -> None:
        """Say nothing: a million jobs make many millions of events."""


@dataclass(eq=False)
class _Lane:
    record: JobRecord
    step: float
    saved: int


@dataclass(eq=False)
class _Worker:
    name: str
    cell: "_Cell"
    queue: JobQueue
    """Of its own: a queue remembers when it last looked for leases that ran out, and each worker looks for itself."""
    lanes: list[_Lane] = field(default_factory=list)
    seen_s: float = 0.0
    beat_s: float = 0.0
    saved_s: float = 0.0
    look_at_s: float = 0.0
    wait_s: float = 0.0
    turn: int = 0


@dataclass(eq=False)
class _Cell:
    node: int
    workers: list[_Worker]
    is_alive: bool = True


class Simulation:
    """One run.

    Args:
        config: What is simulated.
        progress: Called now and then with the number of committed concepts.
    """

    def __init__(self, config: SimulationConfig, *, progress: Callable[[int], None] | None = None) -> None:
        self._config = config
        self._progress = progress or (lambda done: None)
        self._chance = random.Random(config.seed)
        self._clock = EventClock()
        self.store = SimulatedStore()
        self._queue = self._new_queue()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._names = itertools.count()
        self._up: dict[int, float] = {}
        self._cells: dict[int, _Cell] = {}
        self._gpu_s = self._useful_s = self._repeated_s = self._loading_s = 0.0
        self._committed: set[str] = set()
        self._twice = 0
        self.faults: Counter[str] = Counter()
        shape = plan_cells(
            num_jobs=config.concepts,
            num_cpus=config.gpus * 8,
            num_gpus=config.gpus,
            workers_per_cell=config.gpus_per_node,
            lanes=config.worker.lanes,
        )
        self._plan = FleetPlan(pool=_POOL, workers_per_cell=shape.num_workers, lanes=shape.lanes)

    def run(self) -> dict[str, Any]:
        """Run to the last commit.

        Returns:
            What came of it, as JSON values: utilisation, time, requests per concept, faults.
        """
        logging.getLogger("omnifarm").setLevel(logging.ERROR)
        config = self._config
        for number in range(config.concepts):
            identity = JobIdentity(spec_digest=str(number), recipe_digest="simulated", backbone_fingerprint="simulated")
            self._queue.submit(name=f"c{number}", concept_url="", identity=identity, num_steps=config.steps)
            self._note(submission_requests(config.photos))
        for node in range(config.gpus // config.gpus_per_node):
            self._node_comes(node)
        self._adjust()
        self._drive()
        while self._events and len(self._committed) < config.concepts:
            self._clock.time_s, _, act = heapq.heappop(self._events)
            act()
        for node in list(self._up):
            self._count_node(node)
        return self._report()

    def _new_queue(self) -> JobQueue:
        return JobQueue(self.store, clock=self._clock, events=_Quiet(), chance=self._chance)

    def _at(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._clock.time_s + delay_s, next(self._order), act))

    def _note(self, requests: Mapping[str, int]) -> None:
        for kind, count in requests.items():
            self.store.note(kind, count)

    # Nodes and cells

    def _node_comes(self, node: int) -> None:
        self._up[node] = self._clock.time_s
        came_s = self._clock.time_s
        self._at(self._chance.expovariate(1 / (self._config.preemption_h * 3600)), lambda: self._notice(node, came_s))

    def _notice(self, node: int, came_s: float) -> None:
        """A spot node will go: its workers save and give back what they hold."""
        if self._up.get(node) != came_s:
            return
        self.faults["preemption"] += 1
        cell = self._cells.pop(node, None)
        if cell is not None:
            cell.is_alive = False
            for worker in cell.workers:
                self._advance(worker)
                self._save(worker)
                for lane in worker.lanes:
                    self._use(lane, lambda lane: self._queue.release(lane.record))
        self._at(self._config.notice_s, lambda: self._node_goes(node))

    def _node_goes(self, node: int) -> None:
        self._count_node(node)
        self._at(self._chance.expovariate(1 / self._config.absence_s), lambda: self._node_returns(node))

    def _node_returns(self, node: int) -> None:
        self._node_comes(node)
        self._adjust()

    def _count_node(self, node: int) -> None:
        self._gpu_s += (self._clock.time_s - self._up.pop(node)) * self._config.gpus_per_node

    def _drive(self) -> None:
        """Count what the driver asks in a while, as the queue stands now."""
        held = sum(len(worker.lanes) for cell in self._cells.values() for worker in cell.workers)
        unfinished = self._config.concepts - len(self._committed)
        asked = driver_requests(
            _DRIVER_S,
            jobs=self._config.concepts,
            ready=unfinished - held,
            held=held,
            capacity=len(self._up) * self._config.gpus_per_node,
            plan=self._plan,
        )
        for (kind, key), count in asked.items():
            self.store.note(kind, count, shared=key or None)
        self._at(_DRIVER_S, self._drive)

    def _adjust(self) -> None:
        """Start cells on nodes that have none, as a driver would."""
        capacity = len(self._up) * self._config.gpus_per_node
        demand = Demand(workers=-(-(self._config.concepts - len(self._committed)) // self._plan.lanes), priority=5)
        share = fair_shares(capacity, {"driver": demand})["driver"]
        running = [(str(node), len(cell.workers)) for node, cell in self._cells.items()]
        decision = decide(running, share=share, wanted=demand.workers, is_contested=False, plan=self._plan)
        free = [node for node in self._up if node not in self._cells]
        for node, size in zip(free, decision.start, strict=False):
            self._start_cell(node, size)

    def _start_cell(self, node: int, size: int) -> None:
        cell = _Cell(node, [])
        cell.workers = [_Worker(f"w{next(self._names)}", cell, self._new_queue()) for _ in range(size)]
        self._cells[node] = cell
        self._loading_s += self._config.start_s * size
        for worker in cell.workers:
            self._at(self._config.start_s, lambda worker=worker: self._begin(worker))  # type: ignore[misc]
        self._at(self._chance.expovariate(size / (self._config.mtbf_h * 3600)), lambda: self._fail(cell))

    def _fail(self, cell: _Cell) -> None:
        """A device fails: Ray Train starts the whole cell again, its leases run out by themselves."""
        if not cell.is_alive:
            return
        self.faults["failure"] += 1
        for worker in cell.workers:
            self._advance(worker)
            self._repeated_s += sum(lane.step - lane.saved for lane in worker.lanes) * self._lane_step_s
        cell.is_alive = False
        self._start_cell(cell.node, len(cell.workers))

    # Workers

    @property
    def _lane_step_s(self) -> float:
        return self._config.step_s / self._config.worker.lanes

    def _begin(self, worker: _Worker) -> None:
        worker.seen_s = worker.beat_s = worker.saved_s = worker.look_at_s = self._clock.time_s
        for number in range(self._config.shared_pictures):
            self.store.note("get", shared=f"prepared/shared-{number}")
        self._turn(worker, worker.turn)

    def _turn(self, worker: _Worker, turn: int) -> None:
        """What a worker does when something is due: commit, renew, save, take new jobs; then wait for the next."""
        if not worker.cell.is_alive or turn != worker.turn:
            return
        config, now_s = self._config, self._clock.time_s
        self._advance(worker)
        for lane in [lane for lane in worker.lanes if lane.step >= config.steps - 1e-6]:
            worker.lanes.remove(lane)
            self._use(lane, self._commit)
            worker.look_at_s, worker.wait_s = now_s, 0.0
        if now_s - worker.beat_s >= config.worker.heartbeat_s - 1e-6:
            worker.beat_s = now_s
            for lane in list(worker.lanes):
                if not self._use(lane, self._renew):
                    worker.lanes.remove(lane)
        if now_s - worker.saved_s >= config.worker.checkpoint_s - 1e-6:
            worker.saved_s = now_s
            self._save(worker)
        while worker.look_at_s <= now_s + 1e-6:
            self._look(worker)
        worker.turn += 1
        turn = worker.turn
        self._at(self._next_s(worker), lambda: self._turn(worker, turn))

    def _look(self, worker: _Worker) -> None:
        """Ask for orders, and for jobs if there is room; then, as a worker does, ever more seldom while there are none."""
        settings, now_s = self._config.worker, self._clock.time_s
        self.store.note("list", shared=CONTROL)
        free, leased = settings.lanes - len(worker.lanes), list[JobRecord]()
        if free:
            leased = worker.queue.lease_next(worker.name, pool=_POOL, ttl_s=settings.lease_s, max=free)
            # While all lanes are taken, looks change nothing, and those since the last turn are made up for.
            worker.look_at_s = now_s
        for record in leased:
            worker.lanes.append(_Lane(record, float(record.saved_step), record.saved_step))
            self._note(start_requests(self._config.photos, is_first=record.saved_step == 0))
        again_s = settings.poll_s if leased else 2 * worker.wait_s
        worker.wait_s = min(max(settings.poll_s, again_s), max(settings.poll_s, settings.lease_s / 4))
        worker.look_at_s += worker.wait_s
        if not worker.lanes:
            worker.queue.is_drained(_POOL)

    def _next_s(self, worker: _Worker) -> float:
        config, now_s = self._config, self._clock.time_s
        if not worker.lanes:
            return worker.look_at_s - now_s
        look_at_s = worker.look_at_s if len(worker.lanes) < config.worker.lanes else math.inf
        shortest = min(config.steps - lane.step for lane in worker.lanes)
        return max(
            0.0,
            min(
                shortest * self._lane_step_s * len(worker.lanes),
                worker.beat_s + config.worker.heartbeat_s - now_s,
                worker.saved_s + config.worker.checkpoint_s - now_s,
                look_at_s - now_s,
            ),
        )

    def _advance(self, worker: _Worker) -> None:
        """Let a worker's lanes have stepped until now."""
        if worker.lanes:
            steps = (self._clock.time_s - worker.seen_s) / (self._lane_step_s * len(worker.lanes))
            for lane in worker.lanes:
                lane.step = min(self._config.steps, lane.step + steps)
        worker.seen_s = self._clock.time_s

    def _save(self, worker: _Worker) -> None:
        for lane in worker.lanes:
            if int(lane.step) > lane.saved:
                self.store.put(checkpoint_key(lane.record.job_id), b"")
                lane.saved = int(lane.step)
                lane.step = float(lane.saved) if not worker.cell.is_alive else lane.step
                self._use(lane, self._renew) if not worker.cell.is_alive else None

    def _renew(self, lane: _Lane) -> None:
        lane.record = self._queue.heartbeat(
            lane.record, step=int(lane.step), saved_step=lane.saved, ttl_s=self._config.worker.lease_s
        )

    def _commit(self, lane: _Lane) -> None:
        lane.step = float(self._config.steps)
        self._renew(lane)
        self._note(COMMIT_REQUESTS)
        self._queue.complete(lane.record, artifact="a")
        self.store.delete(checkpoint_key(lane.record.job_id))
        self._twice += lane.record.job_id in self._committed
        self._committed.add(lane.record.job_id)
        self._useful_s += self._config.steps * self._lane_step_s
        if len(self._committed) % 1000 == 0:
            self._progress(len(self._committed))

    def _use(self, lane: _Lane, act: Callable[[_Lane], object]) -> bool:
        try:
            act(lane)
        except LeaseLostError:
            self.faults["lease lost"] += 1
            return False
        return True

    def _report(self) -> dict[str, Any]:
        config, total = self._config, sum(self.store.requests.values())
        seconds = self._clock.time_s
        hottest = max(self.store.shared.items(), key=lambda item: item[1], default=("", 0))
        return {
            "concepts": config.concepts,
            "gpus": config.gpus,
            "seed": config.seed,
            "lease_s": config.worker.lease_s,
            "heartbeat_s": config.worker.heartbeat_s,
            "checkpoint_s": config.worker.checkpoint_s,
            "committed": len(self._committed),
            "committed_twice": self._twice,
            "hours": round(seconds / 3600, 2),
            "concepts_per_hour": round(len(self._committed) / (seconds / 3600), 1),
            "utilisation": round(self._useful_s / self._gpu_s, 4),
            "lost": {
                "loading": round(self._loading_s / self._gpu_s, 5),
                "repeated": round(self._repeated_s / self._gpu_s, 5),
            },
            "faults": dict(self.faults),
            "requests_per_concept": round(total / config.concepts, 2),
            "requests": {kind: round(count / config.concepts, 3) for kind, count in self.store.requests.items()},
            "requests_per_s": round(total / seconds, 1),
            "most_requests_on_one_record": self.store.most_per_record,
            "busiest_shared_key": {"key": hottest[0], "per_s": round(hottest[1] / seconds, 3)},
        }
