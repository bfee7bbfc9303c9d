"""Whatever the order of workers, crashes and clock jumps: no job is lost, none is committed twice."""

import contextlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from omnifarm.clock import ManualClock
from omnifarm.errors import PreconditionError, StoreError
from omnifarm.farm.index import LATER, READY
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, LeaseLostError, pool_of
from omnifarm.farm.overview import QueueSummary
from omnifarm.farm.policy import RetryPolicy
from omnifarm.farm.queue import JobQueue
from omnifarm.store.memory import MemoryStore

TTL_S = 60.0
_Answer = TypeVar("_Answer")
POOL = pool_of(recipe_digest="r", backbone_fingerprint="b")


@dataclass
class Trouble:
    """The store dies at the write after next `in_writes` ones, before or after it has happened."""

    in_writes: int
    is_before: bool


class RacingStore(MemoryStore):
    """Lets another worker act between a read and the write that follows, and fails in the middle of an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: Trouble | None = None
        self.commits: dict[str, int] = {}
        self.intruder: Callable[[], None] | None = None
        self.has_intruded = False

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        def write() -> str:
            etag = super(RacingStore, self).put(key, data, if_none_match=if_none_match, if_match=if_match)
            if key.startswith("jobs/") and JobRecord.decode(data).state is JobState.COMMITTED:
                self.commits[key] = self.commits.get(key, 0) + 1
            return etag

        return self._write(write)

    def delete(self, key: str) -> None:
        self._write(lambda: super(RacingStore, self).delete(key))

    def _write(self, write: Callable[[], _Answer]) -> _Answer:
        if self.intruder is not None:
            intruder, self.intruder = self.intruder, None
            self.has_intruded = True
            intruder()
        trouble = self.trouble
        if trouble is None or trouble.in_writes:
            if trouble is not None:
                trouble.in_writes -= 1
            return write()
        self.trouble = None
        if trouble.is_before:
            raise StoreError("the store is away")
        write()
        raise StoreError("the answer was lost")


class JumpingClock(ManualClock):
    """One machine's idea of the time: wrong, and now and then wrong in another way."""

    def __init__(self, true: ManualClock) -> None:
        super().__init__()
        self._true = true
        self.error_s = 0.0

    def now_s(self) -> float:
        return self._true.now_s() + self.error_s

    def monotonic_s(self) -> float:
        return self._true.monotonic_s()


class QueueMachine(RuleBasedStateMachine):
    """Workers hold records; a crash is a record nobody uses again, a slow worker one used much later."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.store = RacingStore()
        self.clock = ManualClock()
        self.policy = RetryPolicy(max_strikes=4, first_delay_s=10, max_delay_s=100)
        self.clocks = [JumpingClock(self.clock) for _ in range(3)]
        self.queues = [
            JobQueue(self.store, clock=clock, policy=self.policy, chance=random.Random(number))
            for number, clock in enumerate(self.clocks)
        ]
        self.submitted: set[str] = set()
        self.artifacts: dict[str, str] = {}

    @rule(number=st.integers(0, 4), queue=st.integers(0, 2), priority=st.sampled_from([2, 5]))
    def submit(self, number: int, queue: int, priority: int) -> None:
        identity = JobIdentity(spec_digest=str(number), recipe_digest="r", backbone_fingerprint="b")
        try:
            self.queues[queue].submit(
                name=f"c{number}",
                concept_url="u",
                identity=identity,
                num_steps=100,
                priority=priority,
                submission=f"s{queue}",
            )
        except StoreError:
            return
        self.submitted.add(identity.job_id)

    @rule(target=held, queue=st.integers(0, 2), most=st.integers(1, 3))
    def lease(self, queue: int, most: int) -> object:
        try:
            return multiple(*self.queues[queue].lease_next(f"w{queue}", pool=POOL, ttl_s=TTL_S, max=most))
        except StoreError:
            return multiple()

    @rule(record=held, queue=st.integers(0, 2), step=st.integers(0, 100))
    def heartbeat(self, record: JobRecord, queue: int, step: int) -> None:
        self._use(lambda: self.queues[queue].heartbeat(record, step=step, saved_step=step // 2, ttl_s=TTL_S), record)

    @rule(record=held, queue=st.integers(0, 2), number=st.integers(0, 99))
    def complete(self, record: JobRecord, queue: int, number: int) -> None:
        self._use(lambda: self.queues[queue].complete(record, artifact=f"artifact-{number}"), record)

    @rule(record=held, queue=st.integers(0, 2), retryable=st.booleans())
    def fail(self, record: JobRecord, queue: int, retryable: bool) -> None:
        self._use(lambda: self.queues[queue].fail(record, reason="x", retryable=retryable), record)

    @rule(record=consumes(held), queue=st.integers(0, 2))
    def release(self, record: JobRecord, queue: int) -> None:
        self._use(lambda: self.queues[queue].release(record), record)

    @rule(record=consumes(held))
    def crash(self, record: JobRecord) -> None:
        del record

    @rule(queue=st.integers(0, 2), record=held)
    def retry(self, queue: int, record: JobRecord) -> None:
        try:
            self.queues[queue].retry(record.job_id)
        except StoreError:
            # Whoever gave an order repeats it until it is answered; until then an ended job may have no index entry.
            self.queues[queue].retry(record.job_id)

    @rule(queue=st.integers(0, 2), record=held)
    def cancel(self, queue: int, record: JobRecord) -> None:
        self._use(lambda: self.queues[queue].cancel(record.job_id), None)

    @rule(machine=st.integers(0, 2), error_s=st.sampled_from([-3600.0, -50.0, 0.0, 50.0, 3600.0]))
    def a_clock_jumps(self, machine: int, error_s: float) -> None:
        self.clocks[machine].error_s = error_s

    @rule(duration_s=st.sampled_from([1.0, 30.0, 61.0, 1000.0]))
    def time_passes(self, duration_s: float) -> None:
        self.clock.advance_s(duration_s)

    @rule(is_before=st.booleans(), in_writes=st.integers(0, 3))
    def a_write_will_go_wrong(self, is_before: bool, in_writes: int) -> None:
        self.store.trouble = Trouble(in_writes=in_writes, is_before=is_before)

    @rule(queue=st.integers(0, 2), commits=st.booleans(), jump_s=st.sampled_from([0.0, 61.0]))
    def another_worker_acts_between_the_next_read_and_its_write(self, queue: int, commits: bool, jump_s: float) -> None:
        def act() -> None:
            self.clock.advance_s(jump_s)
            with contextlib.suppress(StoreError):
                for record in self.queues[queue].lease_next("intruder", pool=POOL, ttl_s=TTL_S, max=9):
                    if commits:
                        self.queues[queue].complete(record, artifact="intruder's")

        self.store.intruder = act

    def _use(self, call: object, record: JobRecord | None) -> None:
        assert callable(call)
        owner = None if record is None else self.queues[0].get(record.job_id).lease
        self.store.has_intruded = False
        try:
            call()
        except LeaseLostError:
            assert record is not None
            assert record.lease is not None
            assert self.store.has_intruded or owner is None or owner.token != record.lease.token, (
                "only the holder may act, and it always may"
            )
        except PreconditionError as error:
            raise AssertionError("a lost race is the queue's to handle") from error
        except StoreError:
            return

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.submitted <= {record.job_id for record in self.queues[0].list()}

    @invariant()
    def every_unfinished_job_can_be_found(self) -> None:
        index = self.queues[0].index
        filed = {entry.job_id for kind in (READY, LATER) for entry in index.entries(kind, pool=POOL)}
        records = self.queues[0].list(self.submitted)
        assert {record.job_id for record in records if not record.state.is_finished} <= filed

    @invariant()
    def nothing_is_committed_twice_or_changed_afterwards(self) -> None:
        assert all(count == 1 for count in self.store.commits.values())
        for record in self.queues[1].list():
            if record.state is JobState.COMMITTED:
                assert record.artifact is not None
                assert self.artifacts.setdefault(record.job_id, record.artifact) == record.artifact
            else:
                assert record.job_id not in self.artifacts
            assert record.strikes <= self.policy.max_strikes

    def teardown(self) -> None:
        """After the storm a single diligent worker, knowing only the index, finishes all that has not ended for good."""
        self.store.trouble = None
        self.store.intruder = None
        queue = JobQueue(self.store, clock=self.clock, policy=self.policy)
        for _ in range(20):
            self.clock.advance_s(1000)
            for record in queue.lease_next("last", pool=POOL, ttl_s=TTL_S, max=99):
                queue.complete(record, artifact="last")
        assert QueueSummary.of(queue.list(self.submitted)).is_finished
        assert self.submitted <= {record.job_id for record in queue.list()}
        assert queue.is_drained(POOL)


TestQueueInterleavings = QueueMachine.TestCase
TestQueueInterleavings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_eight_workers_at_once_commit_every_job_exactly_once() -> None:
    store, clock = RacingStore(), ManualClock()
    ids = []
    for number in range(30):
        identity = JobIdentity(spec_digest=str(number), recipe_digest="r", backbone_fingerprint="b")
        queue = JobQueue(store, clock=clock)
        ids.append(queue.submit(name=f"c{number}", concept_url="u", identity=identity, num_steps=1).job_id)

    def work(worker: int) -> int:
        chance, queue, num_committed = random.Random(worker), JobQueue(store, clock=clock), 0
        while not QueueSummary.of(queue.list()).is_finished:
            for record in queue.lease_next(f"w{worker}", pool=POOL, ttl_s=TTL_S, max=2):
                if chance.random() < 0.3:
                    queue.release(record)
                    continue
                queue.complete(queue.heartbeat(record, step=1, ttl_s=TTL_S), artifact=f"by-{worker}")
                num_committed += 1
        return num_committed

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 30
    assert store.commits == {f"jobs/{job_id}.json": 1 for job_id in ids}
