"""How long a worker bears a store of which a part is away."""

from collections.abc import Callable

import pytest

from omnifarm.clock import ManualClock
from omnifarm.errors import StoreError
from omnifarm.farm.metrics import NoMetrics
from omnifarm.farm.patience import Patience


@pytest.fixture
def patience(clock: ManualClock) -> Patience:
    return Patience("w", limit_s=300, clock=clock, metrics=NoMetrics())


def refuse() -> None:
    raise StoreError("read only")


def test_reads_that_succeed_do_not_excuse_writes_that_fail(patience: Patience, clock: ManualClock) -> None:
    began_s = clock.monotonic_s()

    def work() -> None:
        while clock.monotonic_s() - began_s < 50_000:
            with patience.bear("reading orders"):
                pass
            with patience.bear("committing"):
                refuse()
            clock.advance_s(5)

    with pytest.raises(StoreError, match="read only"):
        work()
    assert clock.monotonic_s() - began_s == 305


def test_what_succeeds_again_has_all_patience_again(patience: Patience, clock: ManualClock) -> None:
    for _ in range(3):
        for _ in range(2):
            with patience.bear("committing"):
                refuse()
            assert patience.is_tried
            clock.advance_s(290)
        with patience.bear("committing"):
            pass
        assert not patience.is_tried


def test_one_thing_that_fails_keeps_no_other_back_and_still_wears_patience_out(
    patience: Patience, clock: ManualClock
) -> None:
    done: list[str] = []
    tries: list[Callable[[], None]] = [refuse, lambda: done.append("second"), lambda: done.append("third")]
    patience.bear_each("saving", tries)
    assert done == ["second", "third"]
    clock.advance_s(301)
    with pytest.raises(StoreError, match="read only"):
        patience.bear_each("saving", tries)
    assert done == ["second", "third"] * 2
