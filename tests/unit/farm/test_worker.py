import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import ManualClock
from omnifarm.concept.repository import CURVE_FILE, ConceptRepository
from omnifarm.errors import ConfigError, StoreError
from omnifarm.farm.control import FarmControl, Order
from omnifarm.farm.job import JobRecord, JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import CHECKPOINTS, record_key
from omnifarm.farm.submission import Backbone, inspect_backbone, submit_concepts
from omnifarm.farm.worker import Worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.store.base import Object
from omnifarm.store.memory import MemoryStore
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE, write_concepts

MakeWorker = Callable[..., Worker]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_concepts(tmp_path_factory.mktemp("concepts"), ["ada", "bob", "eve"], bad="eve")


@pytest.fixture
def queue(store: MemoryStore, clock: ManualClock) -> JobQueue:
    return JobQueue(store, clock=clock)


@pytest.fixture
def jobs(folder: Path, queue: JobQueue, backbone: Backbone) -> list[JobRecord]:
    return submit_concepts(str(folder), queue=queue, backbone=backbone)


@pytest.fixture
def make_worker(
    store: MemoryStore, clock: ManualClock, backbone: Backbone, loaded: LoadedBackbone, jobs: list[JobRecord]
) -> MakeWorker:
    def make(name: str, **settings: float) -> Worker:
        return Worker(
            name,
            store=store,
            workbench=Workbench(loaded, clock=clock),
            recipe=backbone.recipe,
            settings=WorkerSettings(**{"lanes": 2, **settings}),  # type: ignore[arg-type]
            clock=clock,
        )

    return make


def soft_tokens(store: MemoryStore, backbone: Backbone, name: str) -> torch.Tensor:
    return ConceptRepository(store).load(name, fingerprint=backbone.fingerprint)[1].table()


def by_name(queue: JobQueue) -> dict[str, JobRecord]:
    return {record.name: record for record in queue.list()}


def test_good_concepts_are_committed_and_the_bad_one_fails_alone_with_its_reason(
    make_worker: MakeWorker, store: MemoryStore, queue: JobQueue, backbone: Backbone
) -> None:
    make_worker("w").run()
    records = by_name(queue)
    assert {name: record.state for name, record in records.items()} == {
        "ada": JobState.COMMITTED,
        "bob": JobState.COMMITTED,
        "eve": JobState.FAILED,
    }
    assert "0.png" in (records["eve"].error or "")
    manifest, tokens = ConceptRepository(store).load("ada", fingerprint=backbone.fingerprint)
    assert manifest.version == records["ada"].job_id
    assert manifest.recipe == backbone.recipe.to_json()
    assert manifest.losses["step"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert torch.count_nonzero(tokens.table()) > 0
    assert list(store.list(CHECKPOINTS)) == []
    curve = store.get(f"artifacts/ada/{manifest.version}/{CURVE_FILE}").data
    assert pq.read_table(io.BytesIO(curve)).column("total").to_pylist() == manifest.losses["total"]


def test_a_free_lane_is_filled_at_once_however_long_the_last_one_took(
    make_worker: MakeWorker, clock: ManualClock, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, looks = make_worker("w", lanes=1), list[tuple[float, int]]()
    step, lease = worker.step, worker._queue.lease_next

    def slow_step() -> None:
        clock.advance_s(5.0)  # so that looks in vain would have become seldom
        step()

    def noted(*args: Any, **named: Any) -> list[JobRecord]:
        found = lease(*args, **named)
        looks.append((clock.monotonic_s(), len(found)))
        return found

    monkeypatch.setattr(worker, "step", slow_step)
    monkeypatch.setattr(worker._queue, "lease_next", noted)
    began_s = clock.monotonic_s()
    worker.run()
    steps = sum(record.step for record in queue.list())
    assert [at_s - began_s for at_s, count in looks if count] == [0.0, steps / 2 * 5.0]
    assert clock.monotonic_s() - began_s == steps * 5.0, "nobody slept"


def test_submitting_again_is_the_same_job(
    make_worker: MakeWorker, folder: Path, queue: JobQueue, backbone: Backbone
) -> None:
    make_worker("w").run()
    before = queue.list()
    assert submit_concepts(str(folder), queue=queue, backbone=backbone) == before


def test_a_job_submitted_again_from_another_place_is_read_there(
    make_worker: MakeWorker, folder: Path, tmp_path: Path, queue: JobQueue, backbone: Backbone
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(folder / "ada", first / "ada")
    shutil.copytree(folder / "bob", first / "bob")
    for job in submit_concepts(str(first), queue=queue, backbone=backbone):
        queue.cancel(job.job_id)
    queue.retry(by_name(queue)["bob"].job_id)
    first.rename(second)  # one job is cancelled, the other waits
    submit_concepts(str(second), queue=queue, backbone=backbone)
    make_worker("w").run()
    records = by_name(queue)
    assert [records[name].state for name in ("ada", "bob")] == [JobState.COMMITTED] * 2


def test_another_recipe_is_another_job(folder: Path, jobs: list[JobRecord], queue: JobQueue) -> None:
    other = inspect_backbone(str(CHECKPOINT), overrides={**RECIPE, "seed": 1})
    again = submit_concepts(str(folder), queue=queue, backbone=other, only=["ada"])
    assert {record.job_id for record in again}.isdisjoint(record.job_id for record in jobs)


def test_a_name_that_is_not_there_is_refused(folder: Path, queue: JobQueue, backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="no concept named zoe"):
        submit_concepts(str(folder), queue=queue, backbone=backbone, only=["zoe"])


def test_a_dead_workers_concepts_go_on_from_their_checkpoints_to_the_same_result(
    make_worker: MakeWorker,
    store: MemoryStore,
    queue: JobQueue,
    backbone: Backbone,
    clock: ManualClock,
    folder: Path,
) -> None:
    make_worker("whole").run()
    expected = {name: soft_tokens(store, backbone, name) for name in ("ada", "bob")}
    for key in [*store.list()]:
        store.delete(key)

    submit_concepts(str(folder), queue=queue, backbone=backbone)
    dead = make_worker("dead", checkpoint_s=0.001, heartbeat_s=0.001, lease_s=10)
    dead._look()
    for _ in range(3):
        clock.advance_s(0.01)
        dead.step()
    assert len(list(store.list(CHECKPOINTS))) == 2
    assert by_name(queue)["ada"].step == 3

    clock.advance_s(11)
    make_worker("heir").run()
    for name, tokens in expected.items():
        assert torch.equal(soft_tokens(store, backbone, name), tokens)
        assert by_name(queue)[name].attempts == 2


def test_a_worker_that_lost_its_leases_commits_nothing(
    make_worker: MakeWorker, store: MemoryStore, queue: JobQueue, clock: ManualClock
) -> None:
    slow = make_worker("slow", lease_s=10, heartbeat_s=1000 / 300)
    slow._look()
    for _ in range(5):
        slow.step()
    clock.advance_s(11)
    taken = queue.lease_next("other", pool=queue.list()[0].identity.pool, ttl_s=1000, max=2)
    assert len(taken) == 2
    slow.step()
    slow._commit()
    assert slow._held == {}
    assert list(store.list("artifacts/")) == []
    assert {record.lease.worker for record in taken if record.lease} == {"other"}


@pytest.mark.parametrize("when", ["waiting", "training", "over"])
def test_a_record_that_is_spoiled_ends_neither_its_worker_nor_the_other_lane(
    when: str, make_worker: MakeWorker, store: MemoryStore, queue: JobQueue, clock: ManualClock
) -> None:
    worker, ada = make_worker("w", heartbeat_s=0.001, checkpoint_s=0.001), by_name(queue)["ada"]
    if when != "waiting":
        worker._look()
    for _ in range({"waiting": 0, "training": 2, "over": 6}[when]):
        clock.advance_s(0.01)
        worker.step()
    store.put(record_key(ada.job_id), b"torn")
    clock.advance_s(0.01)
    worker.run()
    assert by_name(queue)["bob"].state is JobState.COMMITTED
    assert store.get(record_key(ada.job_id)).data == b"torn"
    assert not list(store.list("artifacts/ada/"))
    # What it had learned goes on from here once its record is mended.
    assert len(list(store.list(CHECKPOINTS))) == (when != "waiting")


def test_a_lane_that_diverges_fails_with_its_reason(
    make_worker: MakeWorker, queue: JobQueue, store: MemoryStore
) -> None:
    worker = make_worker("w")
    worker._look()
    with torch.no_grad():
        worker._held["ada"].lane.soft.fill_(float("nan"))
    worker.run()
    records = by_name(queue)
    assert records["ada"].state is JobState.FAILED
    assert "nan" in (records["ada"].error or "")
    assert records["bob"].state is JobState.COMMITTED
    curve = store.get(f"{CHECKPOINTS}{records['ada'].job_id}.losses.parquet").data
    assert len(pq.read_table(io.BytesIO(curve))) == 0, "it stopped before its first step"


def test_a_damaged_checkpoint_is_passed_over(
    make_worker: MakeWorker, queue: JobQueue, store: MemoryStore, jobs: list[JobRecord]
) -> None:
    for job in jobs:
        store.put(f"{CHECKPOINTS}{job.job_id}.safetensors", b"torn")
    make_worker("w").run()
    assert by_name(queue)["ada"].state is JobState.COMMITTED


class AwayStore(MemoryStore):
    """Answers nothing for a while."""

    is_away = False

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        self._refuse()
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)

    def get(self, key: str) -> Object:
        self._refuse()
        return super().get(key)

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        self._refuse()
        return super().list(prefix, after=after, limit=limit)

    def _refuse(self) -> None:
        if self.is_away:
            raise StoreError("the store is away")


def test_a_store_that_is_away_for_a_while_stops_no_training(
    folder: Path, clock: ManualClock, backbone: Backbone, loaded: LoadedBackbone
) -> None:
    store = AwayStore()
    queue = JobQueue(store, clock=clock)
    submit_concepts(str(folder), queue=queue, backbone=backbone, only=["ada"])
    settings = WorkerSettings(heartbeat_s=0.001, checkpoint_s=0.001, lease_s=10, patience_s=60)
    worker = Worker(
        "w",
        store=store,
        workbench=Workbench(loaded, clock=clock),
        recipe=backbone.recipe,
        settings=settings,
        clock=clock,
    )
    worker._look()
    store.is_away = True
    for _ in range(6):
        clock.advance_s(5)
        worker.step()
        worker._commit()
    assert queue_state(store, queue) == {"ada": JobState.LEASED}
    clock.advance_s(61)
    with pytest.raises(StoreError, match="away"):
        worker._commit()
    store.is_away = False
    worker.run()
    assert queue_state(store, queue) == {"ada": JobState.COMMITTED}
    assert queue.list()[0].attempts == 1


class RefusingStore(MemoryStore):
    """Takes what it is given, but for some keys."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: tuple[str, ...] = ()

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        if self.refused and key.startswith(self.refused):
            raise StoreError("no writes here")
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)


@pytest.fixture
def refusing(
    folder: Path, clock: ManualClock, backbone: Backbone, loaded: LoadedBackbone
) -> tuple[RefusingStore, JobQueue, Worker]:
    store = RefusingStore()
    queue = JobQueue(store, clock=clock)
    submit_concepts(str(folder), queue=queue, backbone=backbone, only=["ada", "bob"])
    workbench = Workbench(loaded, clock=clock)
    settings = WorkerSettings(lanes=2, patience_s=60)
    worker = Worker("w", store=store, workbench=workbench, recipe=backbone.recipe, settings=settings, clock=clock)
    return store, queue, worker


def test_a_draining_worker_gives_up_on_a_store_that_it_can_only_read(
    refusing: tuple[RefusingStore, JobQueue, Worker], clock: ManualClock
) -> None:
    store, _, worker = refusing
    worker._look()
    FarmControl(store).order(Order.DRAIN)
    store.refused = ("artifacts/", "checkpoints/", "jobs/")
    began_s = clock.monotonic_s()
    with pytest.raises(StoreError, match="no writes here"):
        worker.run()
    assert 60 < clock.monotonic_s() - began_s < 120


def test_a_key_that_cannot_be_written_keeps_no_other_concept_back(
    refusing: tuple[RefusingStore, JobQueue, Worker],
) -> None:
    store, queue, worker = refusing
    worker._look()
    first, other = (held.record for held in worker._held.values())
    store.refused = (f"checkpoints/{first.job_id}", f"artifacts/{first.name}/")
    worker.step()
    worker._save()
    assert [key.split("/")[1].partition(".")[0] for key in store.list(CHECKPOINTS)] == [other.job_id]
    while worker._held:
        worker.step()
    worker._commit()
    states = {name: record.state for name, record in by_name(queue).items()}
    assert states == {first.name: JobState.RUNNING, other.name: JobState.COMMITTED}


def queue_state(store: AwayStore, queue: JobQueue) -> dict[str, JobState]:
    was, store.is_away = store.is_away, False
    try:
        return {record.name: record.state for record in queue.list()}
    finally:
        store.is_away = was


def test_a_worker_told_to_stop_saves_and_gives_everything_back(
    make_worker: MakeWorker, store: MemoryStore, queue: JobQueue
) -> None:
    worker = make_worker("w")
    worker._look()
    worker.step()
    FarmControl(store).order(Order.STOP)
    worker._look()
    worker.run()
    records = by_name(queue)
    assert {records[name].state for name in ("ada", "bob")} == {JobState.QUEUED}
    assert (records["ada"].saved_step, records["ada"].attempts, records["ada"].strikes) == (1, 0, 0)
    FarmControl(store).resume()
    make_worker("w2").run()
    assert by_name(queue)["ada"].state is JobState.COMMITTED


def test_a_drained_farm_finishes_what_it_holds_and_takes_nothing_new(
    make_worker: MakeWorker, store: MemoryStore, queue: JobQueue
) -> None:
    worker = make_worker("w", lanes=1)
    worker._look()
    FarmControl(store).order(Order.DRAIN)
    worker.run()
    states = sorted(record.state.value for record in queue.list() if record.name != "eve")
    assert states == ["committed", "queued"]


def test_a_deadline_is_an_order_to_stop(make_worker: MakeWorker, queue: JobQueue, clock: ManualClock) -> None:
    make_worker("w", stop_at_s=clock.now_s()).run()
    assert all(not record.attempts for record in queue.list())


def test_heartbeats_must_fit_the_look() -> None:
    with pytest.raises(ConfigError, match="heartbeat_s"):
        WorkerSettings(lease_s=10, heartbeat_s=9)
