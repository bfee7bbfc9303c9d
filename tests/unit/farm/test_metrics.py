"""What the numbers of a farm say, and that they say nothing of what did not happen."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import ManualClock
from omnifarm.errors import StoreError
from omnifarm.farm.job import JobState
from omnifarm.farm.metrics import COUNTERS, GAUGES, HISTOGRAMS
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import Backbone, submit_concepts
from omnifarm.farm.worker import Worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.store.memory import MemoryStore
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import RECIPE, write_concepts

STEPS = int(str(RECIPE["steps"]))


class Recorder:
    """Keeps every number; a name that is in no table is a mistake."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.gauges: dict[str, list[float]] = defaultdict(list)
        self.observed: dict[str, list[float]] = defaultdict(list)

    def count(self, name: str, value: float = 1.0) -> None:
        assert name in COUNTERS
        self.counters[name] += int(value)

    def gauge(self, name: str, value: float) -> None:
        assert name in GAUGES
        self.gauges[name].append(value)

    def observe(self, name: str, value: float) -> None:
        assert name in HISTOGRAMS
        self.observed[name].append(value)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def worker(
    tmp_path: Path,
    store: MemoryStore,
    clock: ManualClock,
    backbone: Backbone,
    loaded: LoadedBackbone,
    recorder: Recorder,
) -> Worker:
    folder = write_concepts(tmp_path, ["ada", "bob", "eve"])
    submit_concepts(str(folder), queue=JobQueue(store, clock=clock), backbone=backbone)
    return Worker(
        "w",
        store=store,
        workbench=Workbench(loaded, clock=clock),
        recipe=backbone.recipe,
        settings=WorkerSettings(lanes=3),
        metrics=recorder,
        clock=clock,
    )


def test_steps_tokens_lanes_losses_and_commits_are_what_happened(
    worker: Worker, clock: ManualClock, recorder: Recorder
) -> None:
    worker._look()
    lanes = [held.lane for held in worker._held.values()]
    for _ in range(STEPS):
        clock.advance_s(5.0)
        worker.step()
    assert recorder.gauges["omnifarm_lanes"] == [3]
    assert recorder.counters["omnifarm_steps_total"] == 3 * STEPS
    assert recorder.counters["omnifarm_tokens_total"] == worker._workbench.trainer.count.num_tokens > 0
    # A heartbeat after every step but the last, after which no lane trains.
    means = [sum(lane.losses[step].total for lane in lanes) / 3 for step in range(STEPS - 1)]
    assert recorder.gauges["omnifarm_loss"] == pytest.approx(means)
    clock.advance_s(3.0)
    worker._commit()
    assert recorder.observed["omnifarm_commit_seconds"] == [3.0, 3.0, 3.0]
    worker.run()
    assert recorder.gauges["omnifarm_lanes"][-1] == 0
    assert recorder.counters == {
        "omnifarm_steps_total": 3 * STEPS,
        "omnifarm_tokens_total": worker._workbench.trainer.count.num_tokens,
        "omnifarm_concepts_committed_total": 3,
    }


@pytest.mark.parametrize("waiting", [["bob"], ["ada", "bob", "eve"]])
def test_lanes_that_wait_take_no_steps(worker: Worker, recorder: Recorder, waiting: list[str]) -> None:
    worker._look()

    def away(step: int) -> None:
        raise StoreError("the pictures are away")

    for name in waiting:
        worker._held[name].lane.source.draw = away  # type: ignore[method-assign,assignment]
    worker.step()
    worker.step()
    assert recorder.counters["omnifarm_steps_total"] == 2 * (3 - len(waiting))
    assert (recorder.counters["omnifarm_tokens_total"] > 0) == (len(waiting) < 3)


def test_a_lane_whose_step_fails_takes_no_step(worker: Worker, recorder: Recorder) -> None:
    worker._look()

    def poison(step: int) -> None:
        raise RuntimeError("no room for 10 exabytes")

    worker._held["bob"].lane.source.draw = poison  # type: ignore[method-assign,assignment]
    lanes = {name: held.lane for name, held in worker._held.items()}
    worker.step()
    worker._commit()
    # Lanes that stand before it in the order of leasing have stepped, and step again when the step is repeated.
    assert lanes["bob"].step == 0
    assert recorder.counters["omnifarm_steps_total"] == sum(lane.step for lane in lanes.values()) >= 2
    assert recorder.counters["omnifarm_attempts_failed_total"] == 1


def test_a_job_given_up_because_its_workers_fell_silent_is_counted(
    worker: Worker, store: MemoryStore, clock: ManualClock, recorder: Recorder
) -> None:
    queue = JobQueue(store, clock=clock)
    pool = queue.list()[0].identity.pool
    while not any(record.strikes == 4 for record in queue.list()):
        queue.lease_next("dead", pool=pool, ttl_s=10)
        clock.advance_s(100)
    worker._look()
    failed = [record for record in queue.list() if record.state is JobState.FAILED]
    assert recorder.counters["omnifarm_attempts_failed_total"] == len(failed) == 1


def test_take_overs_lost_leases_and_store_errors_are_counted(
    worker: Worker, store: MemoryStore, clock: ManualClock, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = JobQueue(store, clock=clock)
    pool = queue.list()[0].identity.pool
    queue.lease_next("dead", pool=pool, ttl_s=10, max=3)
    clock.advance_s(11)
    worker._look()
    assert recorder.counters["omnifarm_lease_takeovers_total"] == 3
    queue.cancel(queue.list()[0].job_id)
    clock.advance_s(6)
    worker.step()
    assert recorder.counters["omnifarm_leases_lost_total"] == 1

    def away(key: str, data: bytes, **conditions: object) -> str:
        raise StoreError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", away)
        clock.advance_s(6)
        worker.step()
    assert recorder.counters["omnifarm_store_errors_total"] == 1
    assert [record.state for record in queue.list()] == [JobState.CANCELLED, JobState.RUNNING, JobState.RUNNING]
