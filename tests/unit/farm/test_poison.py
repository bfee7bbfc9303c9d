"""One concept that ends its step, or its whole process, and neighbours that must not pay for it."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import ManualClock
from omnifarm.concept.samples import ConceptSample
from omnifarm.concept.sources import LocalSource
from omnifarm.errors import AccessError, StoreError, TrainingError
from omnifarm.farm.job import JobIdentity, JobRecord, JobState
from omnifarm.farm.metrics import NoMetrics
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import Backbone, submit_concepts
from omnifarm.farm.worker import Worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.store.memory import MemoryStore
from omnifarm.training.lane import SampleSource
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import write_concepts

MakeWorker = Callable[..., Worker]
NAMES = ["ada", "bob", "eve"]


class Killed(BaseException):
    """The process is gone: nobody catches this."""


class Poison:
    """Samples that raise from a step on."""

    def __init__(self, source: SampleSource, *, at: int, error: type[BaseException]) -> None:
        self._source, self._at, self._error = source, at, error

    def draw(self, step: int) -> Sequence[ConceptSample]:
        if step >= self._at:
            raise self._error("no room for 10 exabytes")
        return self._source.draw(step)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_concepts(tmp_path_factory.mktemp("concepts"), NAMES)


@pytest.fixture
def queue(store: MemoryStore, clock: ManualClock, folder: Path, backbone: Backbone) -> JobQueue:
    queue = JobQueue(store, clock=clock)
    submit_concepts(str(folder), queue=queue, backbone=backbone)
    return queue


class Counts(NoMetrics):
    """Remembers which counters went up, how often."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def count(self, name: str, value: float = 1.0) -> None:
        self.of[name] += int(value)


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def make_worker(
    store: MemoryStore, clock: ManualClock, backbone: Backbone, loaded: LoadedBackbone, counts: Counts
) -> MakeWorker:
    """Make a worker for which the samples of `poisoned` raise `error` from step `at` on."""

    def make(
        *, poisoned: Sequence[str] = (), at: int = 0, error: type[BaseException] = RuntimeError, lanes_per_pack: int = 1
    ) -> Worker:
        workbench = Workbench(loaded, clock=clock, lanes_per_pack=lanes_per_pack)
        add = workbench.trainer.add

        def add_poisoned(lane):  # type: ignore[no-untyped-def]
            if lane.name in poisoned:
                lane.source = Poison(lane.source, at=at, error=error)
            add(lane)

        workbench.trainer.add = add_poisoned  # type: ignore[method-assign]
        settings = WorkerSettings(lanes=3, lease_s=10, heartbeat_s=1, checkpoint_s=2)
        return Worker(
            "w",
            store=store,
            workbench=workbench,
            recipe=backbone.recipe,
            settings=settings,
            metrics=counts,
            clock=clock,
        )

    return make


def by_name(queue: JobQueue) -> dict[str, JobRecord]:
    return {record.name: record for record in queue.list()}


@pytest.mark.parametrize("lanes_per_pack", [1, 3])
def test_a_lane_whose_step_raises_fails_alone_with_its_traceback(
    make_worker: MakeWorker, queue: JobQueue, counts: Counts, lanes_per_pack: int
) -> None:
    make_worker(poisoned=["bob"], at=0, lanes_per_pack=lanes_per_pack).run()
    records = by_name(queue)
    assert {name: record.state for name, record in records.items()} == {
        "ada": JobState.COMMITTED, "bob": JobState.FAILED, "eve": JobState.COMMITTED,
    }  # fmt: skip
    assert [records[name].attempts for name in NAMES] == [1, 5, 1]
    assert records["bob"].error == "step 0 failed: RuntimeError: no room for 10 exabytes"
    assert "in draw" in (records["bob"].traceback or "")
    assert counts.of["omnifarm_lease_takeovers_total"] == 0, "tried again after a rest, not taken over"


def test_a_lane_whose_pictures_are_away_waits_for_them(
    make_worker: MakeWorker, queue: JobQueue, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(poisoned=["bob"], at=2, error=StoreError)
    sleep_s = clock.sleep_s

    def sleep_until_it_is_back(duration_s: float) -> None:
        sleep_s(duration_s)
        if clock.monotonic_s() - began_s > 200:
            worker._held["bob"].lane.source._at = 99  # type: ignore[attr-defined]

    began_s = clock.monotonic_s()
    monkeypatch.setattr(clock, "sleep_s", sleep_until_it_is_back)
    worker.run()
    assert {(record.state, record.attempts) for record in queue.list()} == {(JobState.COMMITTED, 1)}


def test_pictures_that_stay_away_end_the_attempt_and_not_the_job(
    make_worker: MakeWorker, queue: JobQueue, clock: ManualClock
) -> None:
    worker = make_worker(poisoned=["bob"], at=2, error=StoreError)
    worker._look()
    for _ in range(14):
        clock.advance_s(30.0)
        worker.step()
        worker._commit()
    records = by_name(queue)
    assert [records[name].state for name in NAMES] == [JobState.COMMITTED, JobState.QUEUED, JobState.COMMITTED]
    assert records["bob"].error == "its pictures could not be fetched: no room for 10 exabytes"


def test_a_concept_whose_place_is_away_is_given_back_untried(
    make_worker: MakeWorker, queue: JobQueue, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, began_s, read = make_worker(), clock.monotonic_s(), LocalSource.read
    tries = []

    def away(source: LocalSource, path: str, *, max_bytes: int) -> bytes:
        tries.append(clock.monotonic_s() - began_s)
        if tries[-1] < 1000:  # far longer than five leases
            raise StoreError("the pictures' store is away")
        return read(source, path, max_bytes=max_bytes)

    monkeypatch.setattr(LocalSource, "read", away)
    worker.run()
    assert {(record.state, record.attempts) for record in queue.list()} == {(JobState.COMMITTED, 1)}
    assert len(tries) < 1500, "looked for ever more seldom, three jobs a look"


def test_a_place_that_lets_nobody_in_is_a_reason_to_fail(
    make_worker: MakeWorker, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(source: LocalSource, path: str, *, max_bytes: int) -> bytes:
        raise AccessError("credentials are wrong")

    monkeypatch.setattr(LocalSource, "read", closed)
    make_worker().run()
    assert {(record.state, record.error) for record in queue.list()} == {(JobState.FAILED, "credentials are wrong")}


def test_when_every_lane_fails_alone_it_is_the_worker(make_worker: MakeWorker, queue: JobQueue) -> None:
    with pytest.raises(TrainingError, match="each of 3 lanes failed alone"):
        make_worker(poisoned=NAMES).run()
    assert [record.strikes for record in queue.list()] == [0, 0, 0]


def test_lanes_that_fit_alone_and_not_together_share_a_forward_no_longer(
    make_worker: MakeWorker, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(lanes_per_pack=3)
    sharding = worker._workbench._sharding
    forward, heights = sharding.forward, []

    def small_forward(pack, *, soft_table: torch.Tensor):  # type: ignore[no-untyped-def]
        heights.append(len(soft_table) // 5)
        if len(soft_table) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return forward(pack, soft_table=soft_table)

    monkeypatch.setattr(sharding, "forward", small_forward)
    worker.run()
    assert {record.state for record in queue.list()} == {JobState.COMMITTED}
    assert heights.count(3) == 1, "asked for together once"


def test_a_concept_that_kills_its_process_is_given_up_and_its_neighbours_are_learned(
    make_worker: MakeWorker, queue: JobQueue, clock: ManualClock, counts: Counts
) -> None:
    deaths, most = 0, dict.fromkeys(NAMES, 0)
    while not all(record.state.is_finished for record in queue.list()):
        worker = make_worker(poisoned=["bob"], error=Killed)
        step = worker.step

        def slow_step(step: Callable[[], None] = step) -> None:
            clock.advance_s(1.0)
            step()

        worker.step = slow_step  # type: ignore[method-assign]
        try:
            worker.run()
        except Killed:
            deaths += 1
            clock.advance_s(11)  # a lease; suspects rest longer, and the worker sleeps until they may be leased
        most = {record.name: max(most[record.name], record.strikes) for record in queue.list()}
        assert deaths <= 5, "each was a strike"
    records = by_name(queue)
    assert [records[name].state for name in NAMES] == [JobState.COMMITTED, JobState.FAILED, JobState.COMMITTED]
    assert "fell silent" in (records["bob"].error or "")
    assert most["ada"] <= 2
    assert most["eve"] <= 2
    assert counts.of["omnifarm_lease_takeovers_total"] >= deaths - 1


@pytest.mark.parametrize("poison", range(8))
def test_a_concept_that_kills_a_whole_cell_condemns_none_of_its_seven_neighbours(poison: int) -> None:
    """Eight workers with one concept each; when one dies, Ray starts all of them again."""
    store, clock = MemoryStore(), ManualClock()
    chance = random.Random(poison)
    queue = JobQueue(store, clock=clock, chance=chance)
    for number in range(8):
        identity = JobIdentity(spec_digest=str(number), recipe_digest="r", backbone_fingerprint="b")
        queue.submit(name=f"c{number}", concept_url="u", identity=identity, num_steps=2)
    pool = identity.pool
    held: dict[str, tuple[JobRecord, float]] = {}
    began_at_s = clock.monotonic_s()
    while not queue.is_drained(pool):
        assert clock.monotonic_s() < began_at_s + 10_000
        for number in range(8):
            if f"w{number}" not in held:
                for record in queue.lease_next(f"w{number}", pool=pool, ttl_s=40):
                    held[f"w{number}"] = (record, clock.monotonic_s())
        if any(record.name == f"c{poison}" for record, _ in held.values()):
            held.clear()
            queue = JobQueue(store, clock=clock, chance=chance)
        for worker, (record, began_s) in list(held.items()):
            took_s = clock.monotonic_s() - began_s
            renewed = queue.heartbeat(record, step=1, saved_step=int(took_s >= 30), ttl_s=40)
            held[worker] = (renewed, began_s)
            if took_s >= 60:
                queue.complete(renewed, artifact="a")
                del held[worker]
        clock.advance_s(5)
    failed = [record.name for record in queue.list() if record.state is JobState.FAILED]
    assert failed == [f"c{poison}"]
