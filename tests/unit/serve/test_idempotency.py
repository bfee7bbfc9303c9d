"""Doing a thing once although it is asked twice, over a store in memory and a clock moved by hand."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from omnifarm.clock import ManualClock
from omnifarm.errors import RequestError, StoreError, TrainingError
from omnifarm.store.memory import MemoryStore
from serve.errors import ConflictError
from serve.idempotency import CLAIM_S, KEPT_S, forget_replies, once, sweep


class Work:
    """Counts how often it is done."""

    def __init__(self) -> None:
        self.times = 0

    async def __call__(self) -> dict[str, Any]:
        self.times += 1
        return {"times": self.times}


class RememberingStore(MemoryStore):
    """Keeps older versions, deleted objects' too, until they are erased."""

    def __init__(self) -> None:
        super().__init__()
        self.remembered: set[str] = set()

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        etag = super().put(key, data, if_none_match=if_none_match, if_match=if_match)
        self.remembered.add(key)
        return etag

    def erasable(self, prefix: str) -> Iterator[str]:
        yield from sorted(key for key in self.remembered if key.startswith(prefix))

    def erase(self, key: str) -> None:
        self.delete(key)
        self.remembered.discard(key)


@pytest.fixture
def store() -> RememberingStore:
    return RememberingStore()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def ask(
    store: RememberingStore,
    clock: ManualClock,
    work: Any,
    *,
    key: str | None = "k",
    digest: str = "d",
    route: str = "r",
) -> Any:
    return asyncio.run(once(key, route=route, digest=digest, store=store, clock=clock, work=work))


def test_the_second_time_nothing_is_done(store: RememberingStore, clock: ManualClock) -> None:
    work = Work()
    assert ask(store, clock, work) == ask(store, clock, work) == {"times": 1}
    assert ask(store, clock, work, key="other") == {"times": 2}
    assert ask(store, clock, work, route="elsewhere") == {"times": 3}
    assert ask(store, clock, work, key=None) == {"times": 4}


def test_after_a_day_the_key_is_free(store: RememberingStore, clock: ManualClock) -> None:
    work = Work()
    ask(store, clock, work)
    clock.advance_s(KEPT_S + 1)
    assert ask(store, clock, work) == {"times": 2}


def test_another_request_under_the_same_key_is_refused(store: RememberingStore, clock: ManualClock) -> None:
    ask(store, clock, Work())
    with pytest.raises(RequestError, match="new key"):
        ask(store, clock, Work(), digest="another")


def test_what_failed_is_done_again(store: RememberingStore, clock: ManualClock) -> None:
    async def failing() -> dict[str, Any]:
        raise TrainingError("x")

    with pytest.raises(TrainingError):
        ask(store, clock, failing)
    assert ask(store, clock, Work()) == {"times": 1}


def test_what_was_given_up_is_done_again(store: RememberingStore, clock: ManualClock) -> None:
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


def test_while_the_first_is_under_way_the_second_waits_its_turn(store: RememberingStore, clock: ManualClock) -> None:
    inner = Work()

    async def nested() -> dict[str, Any]:
        with pytest.raises(ConflictError):
            await once("k", route="r", digest="d", store=store, clock=clock, work=inner)
        clock.advance_s(CLAIM_S + 1)
        # By now whoever claimed it is taken for dead.
        return await once("k", route="r", digest="d", store=store, clock=clock, work=inner)

    assert ask(store, clock, nested) == {"times": 1}


@pytest.mark.parametrize("key", ["", "two words", "é", "x" * 256])
def test_a_malformed_key_is_refused(store: RememberingStore, clock: ManualClock, key: str) -> None:
    with pytest.raises(RequestError):
        ask(store, clock, Work(), key=key)


def test_old_replies_are_swept_away_for_good(store: RememberingStore, clock: ManualClock) -> None:
    ask(store, clock, Work())
    clock.advance_s(KEPT_S / 2)
    ask(store, clock, Work(), key="younger")
    assert sweep(store, now_s=clock.now_s()) == 0
    clock.advance_s(KEPT_S / 2 + 1)
    # A claim and its reply.
    assert sweep(store, now_s=clock.now_s()) == 2
    assert store.remembered == set(store.list("idempotency/"))
    assert len(store.remembered) == 2
    # As somebody did who only deleted.
    for left in store.remembered:
        store.delete(left)
    assert sweep(store, now_s=clock.now_s()) == 2
    assert store.remembered == set()


def test_what_else_lies_there_is_swept_away(store: RememberingStore, clock: ManualClock) -> None:
    store.put("idempotency/0123.json", b"{}")
    assert sweep(store, now_s=clock.now_s()) == 1
    assert store.remembered == set()


def test_what_failed_or_is_too_large_leaves_nothing(
    store: RememberingStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing() -> dict[str, Any]:
        raise TrainingError("x")

    with pytest.raises(TrainingError):
        ask(store, clock, failing)
    assert store.remembered == set()
    monkeypatch.setattr("serve.idempotency.MAX_REPLY_BYTES", 10)
    assert ask(store, clock, Work()) == {"times": 1}
    assert store.remembered == set()


def test_forgetting_leaves_no_reply_and_keeps_none_that_is_under_way(
    store: RememberingStore, clock: ManualClock
) -> None:
    ask(store, clock, Work(), key="done")

    async def drawing() -> dict[str, Any]:
        forget_replies(store)
        return {"picture": "of somebody"}

    assert ask(store, clock, drawing) == {"picture": "of somebody"}
    assert store.remembered == set()
    assert ask(store, clock, Work()) == {"times": 1}


def replies(store: MemoryStore) -> set[str]:
    return set(store.list("idempotency/kept/"))


def test_the_oldest_replies_go_when_there_is_no_room(
    store: RememberingStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.idempotency.MAX_KEPT_BYTES", 30)
    work = Work()
    for key in ("a", "b"):
        ask(store, clock, work, key=key)
        clock.advance_s(1)
    assert len(replies(store)) == 2
    ask(store, clock, work, key="c")
    assert len(replies(store)) == 2
    assert ask(store, clock, work, key="b") == {"times": 2}
    assert ask(store, clock, work, key="c") == {"times": 3}
    # Its reply is gone: it is done again, and kept again.
    assert ask(store, clock, work, key="a") == {"times": 4}
    assert ask(store, clock, work, key="a") == {"times": 4}


class SlowStore(RememberingStore):
    """Writes when it is told to, as a store far away does."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_write = threading.Event(), threading.Event()

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        self.begun.set()
        assert self.may_write.wait(10)
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)


def test_who_leaves_while_the_claim_is_written_leaves_no_claim(clock: ManualClock) -> None:
    store = SlowStore()

    async def leave() -> None:
        task = asyncio.ensure_future(once("k", route="r", digest="d", store=store, clock=clock, work=Work()))
        await asyncio.to_thread(store.begun.wait)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, store.may_write.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert store.remembered == set()
    assert ask(store, clock, Work()) == {"times": 1}


def test_who_leaves_while_the_reply_is_written_finds_it_later(clock: ManualClock) -> None:
    store = SlowStore()

    async def leave() -> None:
        async def work() -> dict[str, Any]:
            store.begun.clear()
            store.may_write.clear()
            return {"times": 7}

        store.may_write.set()
        task = asyncio.ensure_future(once("k", route="r", digest="d", store=store, clock=clock, work=work))
        while store.may_write.is_set() or not store.begun.is_set():
            await asyncio.sleep(0)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, store.may_write.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert ask(store, clock, Work()) == {"times": 7}


def test_who_fails_late_leaves_the_claim_of_who_took_it_over(store: RememberingStore, clock: ManualClock) -> None:
    async def slow() -> dict[str, Any]:
        clock.advance_s(CLAIM_S + 1)
        await once("k", route="r", digest="d", store=store, clock=clock, work=Work())
        raise TrainingError("x")

    with pytest.raises(TrainingError):
        ask(store, clock, slow)
    # The other's reply is still there.
    assert ask(store, clock, Work()) == {"times": 1}
    assert len(replies(store)) == 1


class FullStore(RememberingStore):
    """Takes claims and no replies."""

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        if key.startswith("idempotency/kept/"):
            raise StoreError("the disk is full")
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)


def test_a_reply_the_store_does_not_take_is_given_and_the_key_is_free(clock: ManualClock) -> None:
    store, work = FullStore(), Work()
    assert ask(store, clock, work) == {"times": 1}
    assert store.remembered == set()
    assert ask(store, clock, work) == {"times": 2}


def test_a_late_reply_does_not_replace_that_of_who_took_the_claim_over(
    store: RememberingStore, clock: ManualClock
) -> None:
    async def slow() -> dict[str, Any]:
        clock.advance_s(CLAIM_S + 1)
        await once("k", route="r", digest="d", store=store, clock=clock, work=Work())
        return {"times": 99}

    assert ask(store, clock, slow) == {"times": 99}
    assert ask(store, clock, Work()) == {"times": 1}
