import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest

from omnifarm.clock import Clock, ManualClock, SystemClock
from omnifarm.errors import FarmError
from omnifarm.farm.cells import CellFleet, Decision, FleetPlan, decide, worker_name
from omnifarm.farm.control import FarmControl, Order
from omnifarm.farm.job import JobIdentity, JobState, pool_of
from omnifarm.farm.metrics import NoMetrics
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.sharing import TURN_S, Demand, DriverRegistry
from omnifarm.store.memory import MemoryStore

POOL = pool_of(recipe_digest="r", backbone_fingerprint="b")
PLAN = FleetPlan(pool=POOL, workers_per_cell=4, lanes=2, look_s=0.01)


@pytest.mark.parametrize(
    ("running", "share", "wanted", "is_contested", "expected"),
    [
        ([], 10, 99, False, Decision((4, 4, 2), ())),
        ([], 10, 3, False, Decision((3,), ())),
        ([("a", 4)], 10, 99, False, Decision((4, 2), ())),
        ([("a", 4), ("b", 4)], 8, 1, False, Decision((), ())),
        ([("a", 4), ("b", 4)], 5, 99, True, Decision((), ("b",))),
        ([("a", 4), ("b", 4)], 0, 0, True, Decision((), ("b", "a"))),
        ([("a", 4), ("b", 4)], 8, 99, True, Decision((), ())),
    ],
)
def test_cells_follow_share_and_demand(
    running: list[tuple[str, int]], share: int, wanted: int, is_contested: bool, expected: Decision
) -> None:
    assert decide(running, share=share, wanted=wanted, is_contested=is_contested, plan=PLAN) == expected


@pytest.mark.parametrize(
    ("share", "wanted", "expected"), [(10, 99, (4, 4)), (3, 99, ()), (10, 4, (4,)), (8, 8, (4, 4)), (10, 0, ())]
)
def test_a_cell_that_needs_all_its_workers_gets_all_or_is_not_started(
    share: int, wanted: int, expected: tuple[int, ...]
) -> None:
    plan = replace(PLAN, needs_whole_cells=True)
    assert decide([], share=share, wanted=wanted, is_contested=False, plan=plan) == Decision(expected, ())


@pytest.mark.parametrize(
    ("running", "share", "expected"),
    [
        ([], 12, Decision((4, 4), ())),
        ([("a", 4)], 12, Decision((4,), ())),
        ([("a", 1), ("b", 1)], 12, Decision((), ())),
        # A cell that is told to stop leaves its place to nobody in the same look.
        ([("a", 4), ("b", 4)], 4, Decision((), ("b",))),
    ],
)
def test_no_more_cells_are_started_than_are_allowed(
    running: list[tuple[str, int]], share: int, expected: Decision
) -> None:
    plan = replace(PLAN, max_cells=2)
    assert decide(running, share=share, wanted=99, is_contested=True, plan=plan) == expected


class Farm:
    """A farm whose cells train nothing, but lease and commit for real until told to stop."""

    def __init__(self, num_jobs: int) -> None:
        self.store, self.clock = MemoryStore(), SystemClock()
        self.queue = JobQueue(self.store, clock=self.clock)
        self.control = FarmControl(self.store)
        self.registry = DriverRegistry(self.store, clock=self.clock)
        self.capacity = 8
        self.may_work = threading.Event()
        self.may_end = defaultdict[str, threading.Event](threading.Event)
        self.asked: list[int] = []
        self.cells: list[tuple[str, int]] = []
        for number in range(num_jobs):
            identity = JobIdentity(spec_digest=str(number), recipe_digest="r", backbone_fingerprint="b")
            self.queue.submit(name=f"c{number}", concept_url="u", identity=identity, num_steps=1)

    def run_cell(self, name: str, size: int) -> None:
        self.cells.append((name, size))
        while self.control.present(cell=name) is Order.WORK and not self.queue.is_drained(POOL):
            if self.may_work.wait(0.005):
                for record in self.queue.lease_next(name, pool=POOL, ttl_s=60):
                    self.queue.complete(record, artifact="a")

    def never_end(self, name: str, size: int) -> None:
        self.cells.append((name, size))
        assert self.may_end[name].wait(60)

    def fleet(
        self,
        run_cell: Callable[[str, int], None] | None = None,
        plan: FleetPlan = PLAN,
        metrics: NoMetrics | None = None,
        driver: str = "d",
        clock: Clock | None = None,
    ) -> CellFleet:
        return CellFleet(
            driver,
            plan=plan,
            queue=self.queue,
            control=self.control,
            registry=self.registry,
            capacity=lambda: self.capacity,
            run_cell=run_cell or self.run_cell,
            clock=clock or self.clock,
            ask=self.asked.append,
            metrics=metrics,
        )


class Impatient(SystemClock):
    """Ends a driver that would look for ever."""

    def __init__(self) -> None:
        self.looks = 0

    def sleep_s(self, duration_s: float) -> None:
        self.looks += 1
        if self.looks > 500:
            raise TimeoutError("the driver still looks")
        super().sleep_s(duration_s)


def test_a_driver_starts_cells_for_its_concepts_and_ends_with_them() -> None:
    farm = Farm(num_jobs=11)
    farm.may_work.set()
    farm.fleet().run(is_over=lambda: False)
    assert {record.state for record in farm.queue.list()} == {JobState.COMMITTED}
    assert farm.cells[:2] == [("d-0", 4), ("d-1", 2)]
    assert list(farm.store.list("drivers/")) == list(farm.store.list("control/")) == []


def test_one_concept_gets_a_whole_cell_where_the_backbone_is_shared() -> None:
    farm = Farm(num_jobs=1)
    farm.may_work.set()
    farm.fleet(plan=replace(PLAN, needs_whole_cells=True)).run(is_over=lambda: False)
    assert [size for _, size in farm.cells] == [PLAN.workers_per_cell]


def test_cells_come_and_go_with_nodes_and_other_drivers() -> None:
    farm = Farm(num_jobs=40)
    fleet = farm.fleet()
    fleet._adjust()
    assert farm.cells == [("d-0", 4), ("d-1", 4)]
    farm.registry.announce("other", Demand(workers=99, priority=5))
    fleet._adjust()
    assert farm.control.present(cell="d-1") is Order.STOP
    assert farm.control.present(cell="d-0") is Order.WORK
    farm.registry.leave("other")
    farm.capacity = 12
    fleet._adjust()
    assert farm.cells[2:] == [("d-2", 4), ("d-3", 4)]
    farm.may_work.set()
    fleet.run(is_over=lambda: False)
    assert farm.queue.is_drained(POOL)


def test_a_driver_of_a_draining_farm_waits_for_what_its_cells_hold_and_starts_nothing() -> None:
    farm = Farm(num_jobs=16)
    fleet = farm.fleet(farm.never_end)
    fleet._adjust()
    (ours,) = farm.queue.lease_next(worker_name("d-1", 3), pool=POOL, ttl_s=600)
    farm.queue.lease_next(worker_name("other-0", 0), pool=POOL, ttl_s=600)
    farm.control.order(Order.DRAIN)
    farm.may_end["d-0"].set()
    for _ in range(3):
        assert not fleet._is_done(lambda: False)
        fleet._adjust()
    farm.queue.complete(ours, artifact="a")
    assert fleet._is_done(lambda: False)
    farm.may_end["d-1"].set()
    assert farm.cells == [("d-0", 4), ("d-1", 4)]
    assert not farm.queue.is_drained(POOL)


def test_a_driver_of_a_draining_farm_does_not_wait_for_a_cell_that_was_never_placed() -> None:
    farm = Farm(num_jobs=1)
    fleet = farm.fleet(farm.never_end)
    fleet._adjust()
    assert not fleet._is_done(lambda: False)
    farm.control.order(Order.DRAIN)
    assert fleet._is_done(lambda: False)
    assert [cell.thread.is_alive() for cell in fleet._cells] == [True]
    farm.may_end["d-0"].set()


def test_a_driver_asks_for_what_all_could_use_beyond_the_cluster_and_takes_it_back() -> None:
    farm = Farm(num_jobs=40)
    fleet = farm.fleet()
    farm.capacity = 0
    fleet._adjust()
    assert farm.cells == []
    # Not for the twenty workers that there are concepts for: a cluster grows step by step.
    assert farm.asked == [8]
    farm.capacity = 8
    fleet._adjust()
    assert farm.asked == [8, 16]
    assert farm.cells == [("d-0", 4), ("d-1", 4)]
    farm.capacity = 16
    fleet._adjust()
    assert farm.asked[2:] == [20]
    farm.capacity = 20
    fleet._adjust()
    fleet._adjust()
    assert farm.asked[3:] == [0]
    farm.registry.announce("other", Demand(workers=5, priority=5))
    fleet._adjust()
    assert farm.asked[4:] == [25]
    farm.may_work.set()
    fleet.run(is_over=lambda: False)
    assert farm.asked[-1] == 0


def test_no_nodes_are_asked_for_beyond_the_cells_that_are_allowed() -> None:
    farm = Farm(num_jobs=40)
    farm.capacity = 0
    farm.fleet(plan=replace(PLAN, max_cells=1))._adjust()
    assert farm.asked == [4]


def test_two_jobs_of_whole_cells_on_a_cluster_of_one_cell_take_turns() -> None:
    farm = Farm(num_jobs=40)
    farm.capacity = 4
    clock = ManualClock(0.0)
    plan = replace(PLAN, needs_whole_cells=True)
    first, second = (farm.fleet(plan=plan, driver=name, clock=clock) for name in ("a", "b"))
    for fleet in (first, second, first, second):
        fleet._adjust()
    assert farm.cells == [("a-0", 4)]
    clock.advance_s(6 * TURN_S)
    for fleet in (first, second):
        fleet._adjust()
    assert farm.control.present(cell="a-0") is Order.STOP
    assert farm.cells == [("a-0", 4), ("b-0", 4)]
    farm.may_work.set()
    second.run(is_over=lambda: False)
    assert farm.queue.is_drained(POOL)


def test_a_driver_reports_how_deep_the_whole_queue_is() -> None:
    farm, seen = Farm(num_jobs=5), dict[str, float]()

    class Noted(NoMetrics):
        def gauge(self, name: str, value: float) -> None:
            seen[name] = value

    for record in farm.queue.lease_next("w", pool=POOL, ttl_s=60, max=3)[:1]:
        farm.queue.fail(record, reason="no good", retryable=False)
    farm.fleet(metrics=Noted())._adjust()
    depths = {name.removeprefix("omnifarm_queue_"): value for name, value in seen.items() if "queue" in name}
    assert depths == {"ready": 2, "under_way": 2, "failed": 1}


def test_a_driver_whose_concepts_are_done_leaves_the_work_of_others() -> None:
    farm = Farm(num_jobs=4)
    farm.fleet().run(is_over=lambda: bool(farm.cells))
    assert {record.state for record in farm.queue.list()} == {JobState.QUEUED}


@pytest.mark.parametrize(
    ("error", "reason"), [(FarmError("no place"), "no place"), (OSError("disk full"), "OSError: disk full")]
)
def test_a_cell_that_breaks_is_replaced_until_it_is_too_much(error: Exception, reason: str) -> None:
    farm = Farm(num_jobs=4)
    clock = Impatient()

    def break_down(name: str, size: int) -> None:
        farm.cells.append((name, size))
        raise error

    plan = replace(PLAN, max_failures=2)
    with pytest.raises(FarmError, match=f"3 cells failed, the last because: {reason}"):
        farm.fleet(break_down, plan, clock=clock).run(is_over=lambda: False)
    assert len(farm.cells) >= 3
