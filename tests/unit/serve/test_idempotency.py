"""Doing a thing once although it is asked twice, over a store in memory and a clock moved by hand."""

import asyncio
from typing import Any

import pytest

from omnifarm.clock import ManualClock
from omnifarm.errors import RequestError, TrainingError
from omnifarm.store.memory import MemoryStore
from serve.errors import ConflictError
from serve.idempotency import CLAIM_S, KEPT_S, once, sweep


class Work:
    """Counts how often it is done."""

    def __init__(self) -> None:
        self.times = 0

    async def __call__(self) -> dict[str, Any]:
        self.times += 1
        return {"times": self.times}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def ask(
    store: MemoryStore, clock: ManualClock, work: Any, *, key: str | None = "k", digest: str = "d", route: str = "r"
) -> Any:
    return asyncio.run(once(key, route=route, digest=digest, store=store, clock=clock, work=work))


def test_the_second_time_nothing_is_done(store: MemoryStore, clock: ManualClock) -> None:
    work = Work()
    assert ask(store, clock, work) == ask(store, clock, work) == {"times": 1}
    assert ask(store, clock, work, key="other") == {"times": 2}
    assert ask(store, clock, work, route="elsewhere") == {"times": 3}
    assert ask(store, clock, work, key=None) == {"times": 4}


def test_after_a_day_the_key_is_free(store: MemoryStore, clock: ManualClock) -> None:
    work = Work()
    ask(store, clock, work)
    clock.advance_s(KEPT_S + 1)
    assert ask(store, clock, work) == {"times": 2}


def test_another_request_under_the_same_key_is_refused(store: MemoryStore, clock: ManualClock) -> None:
    ask(store, clock, Work())
    with pytest.raises(RequestError, match="new key"):
        ask(store, clock, Work(), digest="another")


def test_what_failed_is_done_again(store: MemoryStore, clock: ManualClock) -> None:
    async def failing() -> dict[str, Any]:
        raise TrainingError("x")

    with pytest.raises(TrainingError):
        ask(store, clock, failing)
    assert ask(store, clock, Work()) == {"times": 1}


def test_what_was_given_up_is_done_again(store: MemoryStore, clock: ManualClock) -> None:
    async def leave() -> None:
        begun = asyncio.Event()

        async def waiting() -> dict[str, Any]:
            begun.set()
            await asyncio.Event().wait()
            return {}

        task = asyncio.ensure_future(once("k", route="r", digest="d", store=store, clock=clock, work=waiting))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert ask(store, clock, Work()) == {"times": 1}


def test_while_the_first_is_under_way_the_second_waits_its_turn(store: MemoryStore, clock: ManualClock) -> None:
    inner = Work()

    async def nested() -> dict[str, Any]:
        with pytest.raises(ConflictError):
            await once("k", route="r", digest="d", store=store, clock=clock, work=inner)
        clock.advance_s(CLAIM_S + 1)
        # By now whoever claimed it is taken for dead.
        return await once("k", route="r", digest="d", store=store, clock=clock, work=inner)

    assert ask(store, clock, nested) == {"times": 1}


@pytest.mark.parametrize("key", ["", "two words", "é", "x" * 256])
def test_a_malformed_key_is_refused(store: MemoryStore, clock: ManualClock, key: str) -> None:
    with pytest.raises(RequestError):
        ask(store, clock, Work(), key=key)


def test_old_replies_are_swept_away(store: MemoryStore, clock: ManualClock) -> None:
    ask(store, clock, Work())
    clock.advance_s(KEPT_S / 2)
    ask(store, clock, Work(), key="younger")
    assert sweep(store, now_s=clock.now_s()) == 0
    clock.advance_s(KEPT_S / 2 + 1)
    assert sweep(store, now_s=clock.now_s()) == 1
    assert len(list(store.list("idempotency/"))) == 1
