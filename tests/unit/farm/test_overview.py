from omnifarm.clock import ManualClock
from omnifarm.farm.job import JobIdentity, JobRecord, pool_of
from omnifarm.farm.overview import OwnJobs
from omnifarm.farm.queue import JobQueue
from omnifarm.store.counting import CountingStore
from omnifarm.store.memory import MemoryStore

POOL = pool_of(recipe_digest="r", backbone_fingerprint="b")


def submit(queue: JobQueue, count: int, *, of: str) -> list[JobRecord]:
    return [
        queue.submit(
            name=f"{of}{number}",
            concept_url="u",
            identity=JobIdentity(spec_digest=f"{of}{number}", recipe_digest="r", backbone_fingerprint="b"),
            num_steps=1,
        )
        for number in range(count)
    ]


def test_a_request_of_six_hundred_jobs_is_over_with_them_though_others_wait_in_its_pool() -> None:
    counted = CountingStore(MemoryStore())
    queue = JobQueue(counted, clock=ManualClock())
    ours, _ = submit(queue, 600, of="ours"), submit(queue, 1, of="theirs")
    own = OwnJobs(queue, [record.job_id for record in ours])
    assert not own.are_finished()
    for record in ours[1:]:
        queue.cancel(record.job_id)
    assert not own.are_finished()
    before = counted.total
    assert not own.are_finished()
    assert counted.total == before + 1
    queue.cancel(ours[0].job_id)
    assert own.are_finished()
    assert not queue.is_drained(POOL)


def test_a_job_that_was_deleted_is_waited_for_no_longer() -> None:
    queue = JobQueue(MemoryStore(), clock=ManualClock())
    kept, deleted = submit(queue, 2, of="c")
    own = OwnJobs(queue, [kept.job_id, deleted.job_id])
    queue.cancel(deleted.job_id)
    queue.records.forget(deleted.job_id)
    assert not own.are_finished()
    queue.cancel(kept.job_id)
    assert own.are_finished()
