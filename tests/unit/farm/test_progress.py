from dataclasses import replace

import pytest

from omnifarm.clock import ManualClock
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, Lease
from omnifarm.farm.overview import glance
from omnifarm.farm.progress import ProgressMeter, duration
from omnifarm.farm.queue import JobQueue
from omnifarm.store.memory import MemoryStore


def running(name: str, step: int) -> JobRecord:
    return JobRecord(
        name=name,
        concept_url="concepts",
        identity=JobIdentity(spec_digest=name, recipe_digest="r", backbone_fingerprint="b"),
        num_steps=100,
        state=JobState.RUNNING,
        lease=Lease(worker="w", token="t", expires_at_s=0.0),
        step=step,
        created_at_s=0.0,
        updated_at_s=0.0,
    )


def test_rate_and_time_left_follow_the_steps() -> None:
    clock = ManualClock()
    meter = ProgressMeter(clock)
    meter.look([running("a", 1), running("b", 1)])
    clock.advance_s(10)
    look = meter.look([running("a", 11), running("b", 11)])
    assert look.steps_per_s == pytest.approx(2.0)
    assert look.left_s == pytest.approx(178 / 2)
    assert look.line() == "0 of 2 concepts learned, step 22/200 (11 %), 2.0 steps/s, 1 min 29 s left"


def test_start_up_does_not_count_as_slowness() -> None:
    clock = ManualClock()
    meter = ProgressMeter(clock)
    for _ in range(5):
        meter.look([running("a", 0)])
        clock.advance_s(10)
    meter.look([running("a", 10)])
    clock.advance_s(10)
    assert meter.look([running("a", 30)]).steps_per_s == pytest.approx(2.0)


def test_falling_back_to_a_checkpoint_gives_no_negative_rate() -> None:
    clock = ManualClock()
    meter = ProgressMeter(clock)
    meter.look([running("a", 50)])
    clock.advance_s(10)
    assert meter.look([running("a", 20)]).steps_per_s is None


def test_failed_jobs_are_no_work_left() -> None:
    failed = replace(running("a", 10), state=JobState.FAILED, lease=None, error="bad data")
    done = replace(running("b", 100), state=JobState.COMMITTED, lease=None, artifact="key")
    look = ProgressMeter(ManualClock()).look([failed, done])
    assert look.is_finished
    assert look.line() == "1 of 2 concepts learned, 1 failed, step 100/100 (100 %)"


def test_a_whole_queue_is_counted_job_by_job_whatever_became_of_each() -> None:
    clock, store = ManualClock(), MemoryStore()
    queue, meter = JobQueue(store, clock=clock), ProgressMeter(clock)
    jobs = []
    for number in range(7):
        identity = JobIdentity(spec_digest=str(number), recipe_digest="r", backbone_fingerprint="b")
        jobs.append(queue.submit(name=f"c{number}", concept_url="u", identity=identity, num_steps=100))
    held = queue.lease_next("w", pool=identity.pool, ttl_s=600, max=5)
    held = [queue.heartbeat(record, step=10, ttl_s=600) for record in held]
    queue.complete(held[0], artifact="key")
    queue.fail(held[1], reason="bad data", retryable=False)
    queue.fail(held[2], reason="no memory", retryable=True)
    queue.cancel(held[3].job_id)
    waiting = {job.job_id for job in jobs} - {record.job_id for record in held}
    queue.cancel(waiting.pop())
    meter.glance(glance(queue), num_steps=100)
    clock.advance_s(10)
    queue.heartbeat(held[4], step=30, ttl_s=600)
    seen = glance(queue)
    assert (seen.jobs, seen.committed, seen.failed, seen.cancelled) == (7, 1, 1, 2)
    assert (seen.ready, len(seen.held), seen.resting) == (1, 1, 1)
    look = meter.glance(seen, num_steps=100)
    # Four jobs are or may be learned; of these one is done and one has taken 30 steps.
    assert (
        look.line()
        == "1 of 7 concepts learned, 1 failed, 2 cancelled, step 130/400 (32 %), 2.0 steps/s, 2 min 15 s left"
    )
    exact = meter.look(queue.list())
    assert (exact.committed, exact.failed, exact.cancelled) == (1, 1, 2), "the records say the same"
    assert (exact.steps_done, exact.steps_total) == (140, 400), "and know of the steps of the job that rests"
    assert not look.is_finished


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_read_like_speech(seconds: float, text: str) -> None:
    assert duration(seconds) == text
