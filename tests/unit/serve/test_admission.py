"""Rates and places, over a clock that is moved by hand."""

import pytest

from omnifarm.clock import ManualClock
from omnifarm.errors import OverloadedError
from omnifarm.tenancy import Caller, TenantLimits
from serve.admission import Admission
from serve.errors import RateLimitError


def caller(tenant: str = "acme", **limits: int) -> Caller:
    return Caller(tenant=tenant, limits=TenantLimits(**limits))


def test_a_tenth_of_the_rate_may_come_at_once_and_the_rest_as_time_passes() -> None:
    clock = ManualClock()
    door = Admission(clock=clock, max_waiting=10)
    acme = caller(requests_per_minute=60)
    for _ in range(6):
        door.check_rate(acme)
    with pytest.raises(RateLimitError) as refused:
        door.check_rate(acme)
    assert refused.value.facts["retry_after_s"] == pytest.approx(1.0)
    clock.advance_s(1.0)
    door.check_rate(acme)
    with pytest.raises(RateLimitError):
        door.check_rate(acme)
    door.check_rate(caller("globex"))


def test_a_rate_that_was_raised_counts_at_once() -> None:
    clock = ManualClock()
    door = Admission(clock=clock, max_waiting=10)
    door.check_rate(caller(requests_per_minute=1))
    with pytest.raises(RateLimitError):
        door.check_rate(caller(requests_per_minute=1))
    clock.advance_s(1.0)
    door.check_rate(caller(requests_per_minute=600))


def test_places_are_given_back_however_the_work_ends() -> None:
    door = Admission(clock=ManualClock(), max_waiting=2)
    with pytest.raises(ValueError, match="x"), door.place(caller()):
        raise ValueError("x")
    with door.place(caller(max_concurrent=1)):
        with pytest.raises(RateLimitError), door.place(caller(max_concurrent=1)):
            pass
        with door.place(caller("globex")), pytest.raises(OverloadedError), door.place(caller("third")):
            pass
    assert door.working == 0


def test_a_tenant_watches_so_many_jobs_and_no_more() -> None:
    door = Admission(clock=ManualClock(), max_waiting=1)
    with door.watch(caller(max_concurrent=2)):
        with door.watch(caller(max_concurrent=2)):
            with pytest.raises(RateLimitError), door.watch(caller(max_concurrent=2)):
                pass
            with door.watch(caller("globex")), door.place(caller(max_concurrent=2)):
                pass
        with door.watch(caller(max_concurrent=2)):
            pass


def test_several_pictures_count_as_several_requests_and_who_comes_next_waits_for_them() -> None:
    clock = ManualClock()
    door = Admission(clock=clock, max_waiting=10)
    acme = caller(requests_per_minute=60)
    door.check_rate(acme)
    door.charge(acme, 9)
    with pytest.raises(RateLimitError) as refused:
        door.check_rate(acme)
    # Six at once, ten taken: four are owed, and one more is asked for.
    assert refused.value.facts["retry_after_s"] == pytest.approx(5.0)
    door.check_rate(caller("globex", requests_per_minute=60))
    clock.advance_s(5.0)
    door.check_rate(acme)
