import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnifarm.clock import ManualClock
from omnifarm.farm.sharing import Demand, DriverRegistry, fair_shares
from omnifarm.store.memory import MemoryStore


def demand(workers: int, priority: int = 0) -> Demand:
    return Demand(workers=workers, priority=priority)


@pytest.mark.parametrize(
    ("capacity", "wanted", "expected"),
    [
        (8, {"a": 9, "b": 9}, {"a": 4, "b": 4}),
        (8, {"a": 2, "b": 9}, {"a": 2, "b": 6}),
        (3, {"a": 9, "b": 9}, {"a": 2, "b": 1}),
        (8, {"a": 3}, {"a": 3}),
        (0, {"a": 3}, {"a": 0}),
        (8, {"a": 0, "b": 1}, {"a": 0, "b": 1}),
    ],
)
def test_workers_are_divided_evenly_up_to_what_is_wanted(
    capacity: int, wanted: dict[str, int], expected: dict[str, int]
) -> None:
    assert fair_shares(capacity, {name: demand(workers) for name, workers in wanted.items()}) == expected


def test_priorities_are_weights() -> None:
    assert fair_shares(8, {"a": demand(99, priority=0), "b": demand(99, priority=2)}) == {"a": 2, "b": 6}


@given(
    capacity=st.integers(0, 60),
    demands=st.dictionaries(
        st.sampled_from("abcdef"), st.builds(Demand, workers=st.integers(0, 30), priority=st.integers(0, 9))
    ),
)
def test_nothing_is_left_idle_and_nobody_gets_too_much(capacity: int, demands: dict[str, Demand]) -> None:
    shares = fair_shares(capacity, demands)
    assert all(0 <= share <= demands[name].workers for name, share in shares.items())
    assert sum(shares.values()) == min(capacity, sum(one.workers for one in demands.values()))


def test_a_dead_drivers_demand_runs_out() -> None:
    clock, store = ManualClock(), MemoryStore()
    registry = DriverRegistry(store, clock=clock, ttl_s=60)
    registry.announce("a", demand(3))
    clock.advance_s(40)
    registry.announce("b", demand(4, priority=9))
    assert registry.present() == {"a": demand(3), "b": demand(4, priority=9)}
    clock.advance_s(30)
    assert registry.present() == {"b": demand(4, priority=9)}
    registry.leave("b")
    assert list(store.list()) == []
