import pytest

from omnifarm.errors import ConfigError
from omnifarm.farm.policy import RetryPolicy


def test_the_rest_doubles_up_to_a_limit_within_its_spread() -> None:
    policy = RetryPolicy(first_delay_s=10, max_delay_s=35)
    for strikes, full_s in ((1, 10), (2, 20), (3, 35), (1000, 35)):
        delays = [policy.delay_s(strikes=strikes, job_id=str(number)) for number in range(50)]
        assert full_s / 2 <= min(delays) < max(delays) <= full_s


def test_the_rest_of_a_job_can_be_foretold() -> None:
    policy = RetryPolicy()
    assert policy.delay_s(strikes=2, job_id="a") == policy.delay_s(strikes=2, job_id="a")


def test_attempts_are_counted_to_the_limit() -> None:
    policy = RetryPolicy(max_strikes=3)
    assert [policy.is_exhausted(strikes=n) for n in (1, 2, 3, 4)] == [False, False, True, True]


@pytest.mark.parametrize("wrong", [{"max_strikes": 0}, {"first_delay_s": -1.0}, {"first_delay_s": 9, "max_delay_s": 8}])
def test_a_policy_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="retry policy"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]
