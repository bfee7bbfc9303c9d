from dataclasses import replace

import pytest

from omnifarm.clock import ManualClock
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, Lease
from omnifarm.farm.progress import ProgressMeter, duration


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


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_read_like_speech(seconds: float, text: str) -> None:
    assert duration(seconds) == text
