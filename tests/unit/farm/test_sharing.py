import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnifarm.clock import ManualClock
from omnifarm.farm.sharing import Demand, DriverRegistry, fair_shares
from omnifarm.store.memory import MemoryStore


def demand(workers: int, priority: int = 0, cell: int = 1) -> Demand:
    return Demand(workers=workers, priority=priority, cell=cell)


DEMANDS = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(
        lambda cells, cell, priority: demand(cells * cell, priority, cell),
        st.integers(0, 12), st.sampled_from([1, 1, 2, 4, 7]), st.integers(0, 9),
    ),
)  # fmt: skip


def able(capacity: int, demands: dict[str, Demand]) -> set[str]:
    """Return the drivers of which the cluster could hold a cell."""
    return {name for name, one in demands.items() if one.workers and one.cell <= capacity}


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


@pytest.mark.parametrize(
    ("capacity", "demands", "expected"),
    [
        # Halves of 2 would be of use to neither.
        (4, {"a": demand(4, cell=4), "b": demand(4, cell=4)}, {"a": 4, "b": 0}),
        (6, {"a": demand(8, cell=4), "b": demand(9)}, {"a": 4, "b": 2}),
        (9, {"a": demand(8, cell=4), "b": demand(9)}, {"a": 4, "b": 5}),
        (7, {"a": demand(4, cell=4), "b": demand(4, cell=4), "c": demand(2, cell=2)}, {"a": 4, "b": 0, "c": 2}),
        (3, {"a": demand(4, cell=4), "b": demand(1)}, {"a": 0, "b": 1}),
    ],
)
def test_shares_are_whole_cells_and_the_remainder_goes_to_the_first_that_fits(
    capacity: int, demands: dict[str, Demand], expected: dict[str, int]
) -> None:
    assert fair_shares(capacity, demands) == expected


def turns(capacity: int, demands: dict[str, Demand], *, count: int) -> list[dict[str, int]]:
    return [fair_shares(capacity, demands, turn=turn) for turn in range(count)]


def test_two_jobs_of_which_one_fits_take_turns_by_priority() -> None:
    low, high = demand(4, priority=0, cell=4), demand(4, priority=2, cell=4)
    served = [max(shares, key=lambda name: shares[name]) for shares in turns(4, {"a": low, "b": high}, count=8)]
    assert served == ["a", "b", "b", "b"] * 2


def test_a_job_of_large_cells_gets_its_turn_beside_one_that_takes_any_worker() -> None:
    assert turns(8, {"a": demand(99), "b": demand(8, cell=8)}, count=3) == [
        {"a": 8, "b": 0},
        {"a": 0, "b": 8},
        {"a": 8, "b": 0},
    ]


def test_where_everybody_is_served_nobody_takes_turns() -> None:
    demands = {"a": demand(8, cell=4), "b": demand(9)}
    assert len({tuple(shares.items()) for shares in turns(10, demands, count=20)}) == 1


@given(capacity=st.integers(0, 40), demands=DEMANDS, turn=st.integers(0, 10**9))
def test_shares_are_whole_cells_that_are_wanted_and_no_cell_that_fits_is_left_out(
    capacity: int, demands: dict[str, Demand], turn: int
) -> None:
    shares = fair_shares(capacity, demands, turn=turn)
    assert shares.keys() == demands.keys()
    assert all(share % demands[name].cell == 0 and share <= demands[name].workers for name, share in shares.items())
    left = capacity - sum(shares.values())
    assert left >= 0
    assert all(one.workers == shares[name] or one.cell > left for name, one in demands.items())


@given(capacity=st.integers(0, 40), demands=DEMANDS)
def test_somebody_always_trains_and_everybody_does_in_turn(capacity: int, demands: dict[str, Demand]) -> None:
    round_of_turns = turns(capacity, demands, count=sum(one.priority + 1 for one in demands.values()) or 1)
    trained = [{name for name, share in shares.items() if share} for shares in round_of_turns]
    assert all(trained) or not able(capacity, demands)
    assert set().union(*trained) == able(capacity, demands)


@given(capacity=st.integers(0, 40), demands=DEMANDS, turn=st.integers(0, 10**9))
def test_when_those_who_train_end_all_others_come_to_train(
    capacity: int, demands: dict[str, Demand], turn: int
) -> None:
    waiting, trained = dict(demands), set[str]()
    while ended := {name for name, share in fair_shares(capacity, waiting, turn=turn).items() if share}:
        trained |= ended
        waiting = {name: one for name, one in waiting.items() if name not in ended}
    assert trained == able(capacity, demands)


def test_a_dead_drivers_demand_runs_out() -> None:
    clock, store = ManualClock(), MemoryStore()
    registry = DriverRegistry(store, clock=clock, ttl_s=60)
    registry.announce("a", demand(3))
    clock.advance_s(40)
    registry.announce("b", demand(4, priority=9, cell=2))
    assert registry.present() == {"a": demand(3), "b": demand(4, priority=9, cell=2)}
    clock.advance_s(30)
    assert registry.present() == {"b": demand(4, priority=9, cell=2)}
    registry.leave("b")
    assert list(store.list()) == []


SOUND = {"workers": 3, "priority": 5, "cell": 1, "expires_at_s": 2e9}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        pytest.param(b"[" * 100_000, id="deep"),
        *(
            json.dumps({**SOUND, **change}).encode()
            for change in (
                {"surprise": 1}, {"workers": "many"}, {"workers": 2.5}, {"workers": -1}, {"priority": -1}, {"priority": 10},
                {"cell": 0}, {"cell": None}, {"expires_at_s": "soon"}, {"expires_at_s": float("nan")},
                {"expires_at_s": float("inf")},
            )
        ),
        json.dumps({name: value for name, value in SOUND.items() if name != "expires_at_s"}).encode(),
    ],
)  # fmt: skip
def test_a_demand_that_cannot_be_read_is_left_out_logged_once_and_left_there(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    registry = DriverRegistry(store, clock=ManualClock())
    for driver in ("a", "torn", "z"):
        registry.announce(driver, demand(3))
    store.put("drivers/torn.json", data)
    for _ in range(2):
        assert registry.present() == {"a": demand(3), "z": demand(3)}
        assert registry.unreadable == {"torn"}
    assert store.get("drivers/torn.json").data == data
    (said,) = [line for line in caplog.records if line.message == "driver_demand_unreadable"]
    assert (said.levelno, said.fields["key"]) == (logging.ERROR, "drivers/torn.json")  # type: ignore[attr-defined]
    registry.announce("torn", demand(4))
    assert registry.present()["torn"] == demand(4)
    assert registry.unreadable == set()
