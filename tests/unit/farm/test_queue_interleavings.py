"""Whatever the order of workers, crashes and clock jumps: no job is lost, none is committed twice."""

import contextlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from omnifarm.clock import ManualClock
from omnifarm.errors import PreconditionError, StoreError
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, LeaseLostError
from omnifarm.farm.policy import RetryPolicy
from omnifarm.farm.queue import JobQueue
from omnifarm.store.memory import MemoryStore

TTL_S = 60.0


@dataclass
class Trouble:
    before: bool = False
    after: bool = False


class RacingStore(MemoryStore):
    """Lets another worker act between a read and the write that follows, and loses answers."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble = Trouble()
        self.commits: dict[str, int] = {}
        self.intruder: Callable[[], None] | None = None
        self.has_intruded = False

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        if self.intruder is not None:
            intruder, self.intruder = self.intruder, None
            self.has_intruded = True
            intruder()
        trouble, self.trouble = self.trouble, Trouble()
        if trouble.before:
            raise StoreError("the store is away")
        etag = super().put(key, data, if_none_match=if_none_match, if_match=if_match)
        if key.startswith("jobs/") and JobRecord.decode(data).state is JobState.COMMITTED:
            self.commits[key] = self.commits.get(key, 0) + 1
        if trouble.after:
            raise StoreError("the answer was lost")
        return etag


class QueueMachine(RuleBasedStateMachine):
    """Workers hold records; a crash is a record nobody uses again, a slow worker one used much later."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.store = RacingStore()
        self.clock = ManualClock()
        self.policy = RetryPolicy(max_attempts=4, first_delay_s=10, max_delay_s=100)
        self.queues = [JobQueue(self.store, clock=self.clock, policy=self.policy) for _ in range(3)]
        self.submitted: set[str] = set()
        self.artifacts: dict[str, str] = {}

    @rule(number=st.integers(0, 4), queue=st.integers(0, 2))
    def submit(self, number: int, queue: int) -> None:
        identity = JobIdentity(spec_digest=str(number), recipe_digest="r", backbone_fingerprint="b")
        try:
            self.queues[queue].submit(name=f"c{number}", concept_url="u", identity=identity, num_steps=100)
        except StoreError:
            return
        self.submitted.add(identity.job_id)

    @rule(target=held, queue=st.integers(0, 2), most=st.integers(1, 3))
    def lease(self, queue: int, most: int) -> object:
        try:
            return multiple(*self.queues[queue].lease_next(f"w{queue}", ttl_s=TTL_S, max=most))
        except StoreError:
            return multiple()

    @rule(record=held, queue=st.integers(0, 2), step=st.integers(0, 100))
    def heartbeat(self, record: JobRecord, queue: int, step: int) -> None:
        self._use(lambda: self.queues[queue].heartbeat(record, step=step, ttl_s=TTL_S), record)

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
        self._use(lambda: self.queues[queue].retry(record.job_id), None)

    @rule(duration_s=st.sampled_from([1.0, 30.0, 61.0, 1000.0]))
    def time_passes(self, duration_s: float) -> None:
        self.clock.advance_s(duration_s)

    @rule(before=st.booleans())
    def the_next_write_goes_wrong(self, before: bool) -> None:
        self.store.trouble = Trouble(before=before, after=not before)

    @rule(queue=st.integers(0, 2), commits=st.booleans(), jump_s=st.sampled_from([0.0, 61.0]))
    def another_worker_acts_between_the_next_read_and_its_write(self, queue: int, commits: bool, jump_s: float) -> None:
        def act() -> None:
            self.clock.advance_s(jump_s)
            with contextlib.suppress(StoreError):
                for record in self.queues[queue].lease_next("intruder", ttl_s=TTL_S, max=9):
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
    def nothing_is_committed_twice_or_changed_afterwards(self) -> None:
        assert all(count == 1 for count in self.store.commits.values())
        for record in self.queues[1].list():
            if record.state is JobState.COMMITTED:
                assert record.artifact is not None
                assert self.artifacts.setdefault(record.job_id, record.artifact) == record.artifact
            else:
                assert record.job_id not in self.artifacts
            assert record.attempts <= self.policy.max_attempts

    def teardown(self) -> None:
        """After the storm a single diligent worker finishes everything that has not failed for good."""
        self.store.trouble = Trouble()
        self.store.intruder = None
        queue = JobQueue(self.store, clock=self.clock, policy=self.policy)
        for _ in range(20):
            self.clock.advance_s(1000)
            for record in queue.lease_next("last", ttl_s=TTL_S, max=99):
                queue.complete(record, artifact="last")
        assert queue.summary().is_finished
        assert self.submitted <= {record.job_id for record in queue.list()}


TestQueueInterleavings = QueueMachine.TestCase
TestQueueInterleavings.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_eight_workers_at_once_commit_every_job_exactly_once() -> None:
    store, clock = RacingStore(), ManualClock()
    ids = []
    for number in range(30):
        identity = JobIdentity(spec_digest=str(number), recipe_digest="r", backbone_fingerprint="b")
        queue = JobQueue(store, clock=clock)
        ids.append(queue.submit(name=f"c{number}", concept_url="u", identity=identity, num_steps=1).job_id)

    def work(worker: int) -> int:
        chance, queue, num_committed = random.Random(worker), JobQueue(store, clock=clock), 0
        while not queue.summary().is_finished:
            for record in queue.lease_next(f"w{worker}", ttl_s=TTL_S, max=2):
                if chance.random() < 0.3:
                    queue.release(record)
                    continue
                queue.complete(queue.heartbeat(record, step=1, ttl_s=TTL_S), artifact=f"by-{worker}")
                num_committed += 1
        return num_committed

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 30
    assert store.commits == {f"jobs/{job_id}.json": 1 for job_id in ids}
