import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from omnifarm.clock import ManualClock
from omnifarm.errors import FarmError, NotFoundError, StoreError
from omnifarm.farm.garbage import collect_garbage
from omnifarm.farm.index import LATER, READY
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, LeaseLostError, pool_of
from omnifarm.farm.overview import QueueSummary, glance
from omnifarm.farm.policy import RetryPolicy
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import checkpoint_key
from omnifarm.store.base import Object
from omnifarm.store.memory import MemoryStore

TTL_S = 60.0
POOL = pool_of(recipe_digest="r", backbone_fingerprint="b")


class FlakyStore(MemoryStore):
    """Loses the answers of the next writes, which happened all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.lost_answers = 0

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        etag = super().put(key, data, if_none_match=if_none_match, if_match=if_match)
        if self.lost_answers:
            self.lost_answers -= 1
            raise StoreError("the answer was lost")
        return etag


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        self.requests += 1
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)

    def get(self, key: str) -> Object:
        self.requests += 1
        return super().get(key)

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        self.requests += 1
        return super().list(prefix, after=after, limit=limit)

    def delete(self, key: str) -> None:
        self.requests += 1
        super().delete(key)


class Recorder:
    def __init__(self) -> None:
        self.names: list[str] = []

    def emit(self, name: str, **fields: Any) -> None:
        self.names.append(name)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
def queue(store: FlakyStore, clock: ManualClock) -> JobQueue:
    policy = RetryPolicy(max_strikes=3, first_delay_s=10, max_delay_s=100)
    return JobQueue(store, clock=clock, policy=policy, chance=random.Random(0))


def submit(queue: JobQueue, name: str = "maeve", **more: Any) -> JobRecord:
    identity = JobIdentity(spec_digest=name, recipe_digest="r", backbone_fingerprint="b")
    return queue.submit(name=name, concept_url="folder", identity=identity, num_steps=10, **more)


def lease(queue: JobQueue, worker: str = "w1") -> JobRecord:
    (record,) = queue.lease_next(worker, pool=POOL, ttl_s=TTL_S)
    return record


def test_the_way_of_a_job(queue: JobQueue, clock: ManualClock) -> None:
    assert submit(queue).state is JobState.QUEUED
    held = lease(queue)
    assert (held.state, held.attempts) == (JobState.LEASED, 1)
    held = queue.heartbeat(held, step=4, ttl_s=TTL_S)
    assert (held.state, held.step) == (JobState.RUNNING, 4)
    done = queue.complete(held, artifact="artifacts/maeve/1/")
    assert done == queue.get(held.job_id)
    assert (done.state, done.step, done.artifact) == (JobState.COMMITTED, 10, "artifacts/maeve/1/")


def test_the_same_identity_twice_is_one_job(queue: JobQueue) -> None:
    first = submit(queue)
    lease(queue)
    again = submit(queue)
    assert (again.job_id, again.state) == (first.job_id, JobState.LEASED)
    assert len(queue.list()) == 1


def test_a_held_job_submitted_from_another_place_goes_there_when_it_is_tried_again(queue: JobQueue) -> None:
    submit(queue)
    held = lease(queue)
    identity = held.identity
    queue.submit(name="maeve", concept_url="elsewhere", identity=identity, num_steps=10, submission="other")
    held = queue.heartbeat(held, step=1, ttl_s=TTL_S)
    assert (held.concept_url, held.submission) == ("elsewhere", "default")
    assert queue.release(held).concept_url == "elsewhere"


def test_a_committed_job_is_not_leased_again(queue: JobQueue, store: FlakyStore, clock: ManualClock) -> None:
    submit(queue)
    queue.complete(lease(queue), artifact="a")
    clock.advance_s(1e6)
    submit(queue)
    assert queue.lease_next("w2", pool=POOL, ttl_s=TTL_S) == []
    assert JobQueue(store, clock=clock).lease_next("w2", pool=POOL, ttl_s=TTL_S) == []


def test_bad_data_at_submission_is_a_failed_record(queue: JobQueue) -> None:
    submit(queue, error="photo 3 is not an image")
    assert queue.lease_next("w1", pool=POOL, ttl_s=TTL_S) == []
    (record,) = queue.list()
    assert (record.state, record.error) == (JobState.FAILED, "photo 3 is not an image")


def test_a_live_lease_keeps_others_away(queue: JobQueue, clock: ManualClock) -> None:
    submit(queue)
    held = lease(queue)
    for _ in range(5):
        clock.advance_s(TTL_S - 1)
        assert queue.lease_next("w2", pool=POOL, ttl_s=TTL_S) == []
        held = queue.heartbeat(held, step=1, ttl_s=TTL_S)


def test_an_expired_lease_is_taken_over_and_the_late_worker_told(queue: JobQueue, clock: ManualClock) -> None:
    submit(queue)
    late = queue.heartbeat(lease(queue, "w1"), step=7, ttl_s=TTL_S)
    clock.advance_s(TTL_S)
    new = lease(queue, "w2")
    assert (new.attempts, new.step) == (2, 7)
    for use in (
        lambda: queue.heartbeat(late, step=8, ttl_s=TTL_S),
        lambda: queue.release(late),
        lambda: queue.complete(late, artifact="late"),
        lambda: queue.fail(late, reason="late", retryable=False),
    ):
        with pytest.raises(LeaseLostError, match="held by w2"):
            use()
    assert queue.get(new.job_id) == new


def test_the_same_worker_after_a_restart_holds_another_lease(queue: JobQueue, clock: ManualClock) -> None:
    submit(queue)
    old = lease(queue, "w1")
    clock.advance_s(TTL_S)
    lease(queue, "w1")
    with pytest.raises(LeaseLostError):
        queue.heartbeat(old, step=1, ttl_s=TTL_S)


def test_a_late_worker_may_go_on_while_nobody_took_over(queue: JobQueue, clock: ManualClock) -> None:
    submit(queue)
    held = lease(queue)
    clock.advance_s(10 * TTL_S)
    held = queue.heartbeat(held, step=2, ttl_s=TTL_S)
    assert queue.lease_next("w2", pool=POOL, ttl_s=TTL_S) == []
    queue.complete(held, artifact="a")


def test_a_late_commit_changes_nothing(queue: JobQueue, clock: ManualClock) -> None:
    submit(queue)
    late = lease(queue, "w1")
    clock.advance_s(TTL_S)
    queue.complete(lease(queue, "w2"), artifact="theirs")
    with pytest.raises(LeaseLostError, match="now committed"):
        queue.complete(late, artifact="mine")
    assert queue.get(late.job_id).artifact == "theirs"


def test_a_released_job_is_leased_at_once_and_the_attempt_forgotten(queue: JobQueue) -> None:
    submit(queue)
    for _ in range(10):
        queue.release(lease(queue))
    assert queue.list()[0].attempts == 0


def test_a_failed_attempt_rests_and_then_counts(queue: JobQueue, clock: ManualClock) -> None:
    submit(queue)
    for attempt in (1, 2):
        after = queue.fail(lease(queue), reason="out of memory", retryable=True, traceback="tb")
        assert (after.state, after.attempts, after.error) == (JobState.QUEUED, attempt, "out of memory")
        assert queue.lease_next("w1", pool=POOL, ttl_s=TTL_S) == []
        clock.advance_s(20)
    last = queue.fail(lease(queue), reason="again", retryable=True, traceback="tb")
    assert (last.state, last.attempts, last.traceback) == (JobState.FAILED, 3, "tb")
    clock.advance_s(1e6)
    assert queue.lease_next("w1", pool=POOL, ttl_s=TTL_S) == []


def test_what_a_retry_cannot_heal_fails_at_once(queue: JobQueue) -> None:
    submit(queue)
    assert queue.fail(lease(queue), reason="no photo", retryable=False).state is JobState.FAILED


def test_a_job_that_kills_its_workers_is_given_up(queue: JobQueue, clock: ManualClock) -> None:
    submit(queue)
    for _ in range(3):
        lease(queue)
        clock.advance_s(9 * TTL_S)
    assert queue.lease_next("w1", pool=POOL, ttl_s=TTL_S) == []
    (record,) = queue.list()
    assert record.state is JobState.FAILED
    assert "given up: w1" in str(record.error)


def test_a_person_may_retry_a_failed_job(queue: JobQueue) -> None:
    record = submit(queue)
    assert queue.retry(record.job_id).state is JobState.QUEUED
    queue.fail(lease(queue), reason="no photo", retryable=False)
    assert queue.retry(record.job_id).attempts == 0
    assert lease(queue).error == "no photo"


def test_max_and_pool_bound_what_is_leased(queue: JobQueue) -> None:
    for number in range(6):
        submit(queue, f"c{number}")
    assert queue.lease_next("w1", pool=POOL, ttl_s=TTL_S, max=0) == []
    assert queue.lease_next("w1", pool="another", ttl_s=TTL_S, max=9) == []
    assert len(queue.lease_next("w1", pool=POOL, ttl_s=TTL_S, max=2)) == 2
    assert len(queue.lease_next("w1", pool=POOL, ttl_s=TTL_S, max=99)) == 4
    assert queue.is_drained("another")
    assert not queue.is_drained(POOL)


def test_a_higher_priority_comes_first_also_when_it_is_raised_later(queue: JobQueue, clock: ManualClock) -> None:
    for number in range(20):
        submit(queue, f"low{number}", priority=1)
    submit(queue, "high", priority=7)
    assert lease(queue).name == "high"
    submit(queue, "low7", priority=9, submission="hurry")
    clock.advance_s(5)
    assert lease(queue, "w2").name == "low7"


def test_more_submissions_than_are_looked_at_once_are_all_served(queue: JobQueue, clock: ManualClock) -> None:
    for number in range(24):
        for job in range(6):
            submit(queue, f"a{number}-{job}", priority=7, submission=f"s{number}")
    submit(queue, "low", submission="later")
    served = Counter[str]()
    for _ in range(72):
        record = lease(queue)
        served[record.submission] += 1
        queue.complete(record, artifact="x")
        clock.advance_s(10)  # long enough for another look
    assert "later" not in served
    assert len(served) >= 22, "of 24, half of whose jobs are done"


def test_submissions_of_one_priority_take_even_turns_however_long_they_are(queue: JobQueue) -> None:
    for number in range(300):
        submit(queue, f"a{number}", submission="long")
    for number in range(60):
        submit(queue, f"b{number}", submission="short")
    first = [lease(queue).submission for _ in range(60)]
    assert 18 <= first.count("short") <= 42
    assert len(queue.lease_next("w1", pool=POOL, ttl_s=TTL_S, max=999)) == 300


def test_a_retried_job_whose_checkpoint_was_collected_gets_on_without_strikes(
    store: FlakyStore, queue: JobQueue, clock: ManualClock
) -> None:
    submit(queue)
    held = lease(queue)
    store.put(checkpoint_key(held.job_id), b"a lane at step 8")
    held = queue.heartbeat(held, step=8, saved_step=8, ttl_s=TTL_S)
    queue.fail(held, reason="no good", retryable=False)
    assert collect_garbage(store, queue=queue, dry_run=False).checkpoints
    queue.retry(held.job_id)
    for step in (1, 2, 3, 4, 5):
        record = queue.heartbeat(lease(queue), step=step, saved_step=step, ttl_s=TTL_S)
        assert record.strikes == 0
        clock.advance_s(10 * TTL_S)  # taken away, as spot machines are


def test_an_attempt_that_got_a_checkpoint_further_is_no_strike(queue: JobQueue, clock: ManualClock) -> None:
    submit(queue)
    for step in range(1, 8):
        queue.heartbeat(lease(queue), step=step, saved_step=step, ttl_s=TTL_S)
        clock.advance_s(TTL_S)
    record = queue.heartbeat(lease(queue), step=7, saved_step=7, ttl_s=TTL_S)
    assert (record.attempts, record.strikes) == (8, 0)
    for strikes in (1, 2):
        clock.advance_s(9 * TTL_S)
        assert lease(queue).strikes == strikes
    clock.advance_s(TTL_S)
    assert queue.lease_next("w1", pool=POOL, ttl_s=TTL_S) == []
    assert queue.list()[0].state is JobState.FAILED


def test_a_cancelled_job_is_taken_from_its_worker_and_may_be_queued_again(queue: JobQueue, clock: ManualClock) -> None:
    waiting, _ = submit(queue, "a"), submit(queue, "b")
    queue.cancel(waiting.job_id)
    held = lease(queue)
    assert held.name == "b"
    assert queue.cancel(held.job_id).state is JobState.CANCELLED
    with pytest.raises(LeaseLostError, match="now cancelled"):
        queue.heartbeat(held, step=1, ttl_s=TTL_S)
    assert queue.is_drained(POOL)
    assert queue.retry(held.job_id).state is JobState.QUEUED
    done = queue.complete(lease(queue), artifact="a")
    assert queue.cancel(done.job_id) == done


def test_leasing_costs_the_same_however_many_wait(clock: ManualClock) -> None:
    def requests(num_jobs: int) -> int:
        store = CountingStore()
        queue = JobQueue(store, clock=clock, chance=random.Random(0))
        for number in range(num_jobs):
            submit(queue, f"c{number}")
        store.requests = 0
        for worker in range(20):
            lease(queue, f"w{worker}")
            clock.advance_s(1)
        return store.requests

    assert requests(2000) <= requests(200) + 4


def test_a_move_that_was_broken_off_is_finished_by_whoever_finds_it(store: FlakyStore, clock: ManualClock) -> None:
    queue = JobQueue(store, clock=clock)
    submit(queue)
    (entry,) = queue.index.entries(READY)
    held = lease(queue)
    queue.index.write(entry)  # as if the worker had died before it deleted it
    assert queue.lease_next("w2", pool=POOL, ttl_s=TTL_S) == []
    assert list(queue.index.entries(READY)) == []
    assert [found.job_id for found in queue.index.entries(LATER)] == [held.job_id]


def test_the_index_alone_tells_how_the_queue_stands(queue: JobQueue) -> None:
    for number in range(5):
        submit(queue, f"c{number}")
    submit(queue, "bad", error="no photo")
    first, second, third = queue.lease_next("w1", pool=POOL, ttl_s=TTL_S, max=3)
    queue.complete(first, artifact="a")
    queue.heartbeat(second, step=3, ttl_s=TTL_S)
    queue.fail(third, reason="oom", retryable=True)
    seen = glance(queue).to_json()
    assert seen == {
        "jobs": 6, "ready": 2, "held": 1, "resting": 1, "failed": 1, "cancelled": 0, "committed": 1, "finished": 2,
        "unreadable": 0, "steps_of_held": 3,
    }  # fmt: skip


def test_the_summary_counts_states_and_steps(queue: JobQueue) -> None:
    for name in ("a", "b", "c", "d"):
        submit(queue, name)
    first, second, third = queue.lease_next("w1", pool=POOL, ttl_s=TTL_S, max=3)
    queue.complete(first, artifact="x")
    queue.heartbeat(second, step=4, ttl_s=TTL_S)
    queue.fail(third, reason="bad", retryable=False)
    summary = QueueSummary.of(queue.list())
    assert {state.value: n for state, n in summary.counts.items()} == {
        "queued": 1,
        "leased": 0,
        "running": 1,
        "committed": 1,
        "failed": 1,
        "cancelled": 0,
    }
    assert (summary.total, summary.steps_done, summary.steps_total, summary.is_finished) == (4, 14, 30, False)
    assert QueueSummary.of(queue.list([first.job_id, third.job_id])).is_finished
    assert [record.name for record in queue.list()] == ["a", "b", "c", "d"]


def test_a_write_whose_answer_was_lost_may_be_repeated(queue: JobQueue, store: FlakyStore) -> None:
    store.lost_answers = 1
    with pytest.raises(StoreError):
        submit(queue)
    submit(queue)
    held = lease(queue)
    for use in (
        lambda: queue.heartbeat(held, step=3, ttl_s=TTL_S),
        lambda: queue.complete(held, artifact="a"),
    ):
        store.lost_answers = 1
        with pytest.raises(StoreError):
            use()
        record = use()
    assert (record.state, record.artifact) == (JobState.COMMITTED, "a")


def test_an_unknown_job_is_not_found(queue: JobQueue) -> None:
    with pytest.raises(NotFoundError):
        queue.get("0" * 32)


def test_a_record_nobody_leased_cannot_be_worked_on(queue: JobQueue) -> None:
    with pytest.raises(FarmError, match="only a leased record"):
        queue.heartbeat(submit(queue), step=1, ttl_s=TTL_S)


def test_a_lease_without_duration_is_refused(queue: JobQueue) -> None:
    with pytest.raises(FarmError, match="longer than 0 s"):
        queue.lease_next("w", pool=POOL, ttl_s=0)


def test_every_move_is_one_event(store: FlakyStore, clock: ManualClock) -> None:
    events = Recorder()
    queue = JobQueue(store, clock=clock, events=events)
    submit(queue)
    submit(queue)
    queue.release(lease(queue))
    lease(queue)
    clock.advance_s(TTL_S)
    queue.complete(lease(queue), artifact="a")
    assert events.names == [
        "job_submitted",
        "job_leased",
        "job_released",
        "job_leased",
        "lease_taken_over",
        "job_committed",
    ]
