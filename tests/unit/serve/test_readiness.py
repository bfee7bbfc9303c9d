"""What strangers may ask of the store, and what a replica that dies does to the others' figures."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from omnifarm.clock import ManualClock
from omnifarm.errors import StoreError
from omnifarm.store.memory import MemoryStore
from serve.metrics import answered
from serve.readiness import BELIEVED_S, Readiness


class CountingStore(MemoryStore):
    """Counts how often it is listed, and may refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = 0
        self.is_down = False
        self.may_answer = threading.Event()
        self.may_answer.set()

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        self.listed += 1
        assert self.may_answer.wait(10)
        if self.is_down:
            raise StoreError("down")
        return super().list(prefix, after=after, limit=limit)


def test_many_who_ask_at_once_cost_one_look_and_a_look_is_believed_for_a_moment() -> None:
    store, clock = CountingStore(), ManualClock()
    ready = Readiness(store, clock=clock)

    async def crowd() -> None:
        store.may_answer.clear()
        asking = [asyncio.ensure_future(ready.check()) for _ in range(50)]
        await asyncio.sleep(0.05)
        asking[0].cancel()
        clock.advance_s(BELIEVED_S + 1)
        late = asyncio.ensure_future(ready.check())
        await asyncio.sleep(0.05)
        store.may_answer.set()
        await asyncio.gather(*asking[1:], late)
        # The look took long: a new one is due.
        assert store.listed == 1
        await ready.check()
        await ready.check()
        assert store.listed == 2
        store.is_down = True
        await ready.check()
        clock.advance_s(BELIEVED_S)
        for _ in range(3):
            with pytest.raises(StoreError):
                await ready.check()
        assert store.listed == 3
        store.is_down = False
        clock.advance_s(BELIEVED_S)
        await ready.check()

    asyncio.run(crowd())


def test_a_replica_that_dies_is_missing_from_the_figures_and_no_more() -> None:
    own = ("me", "mine")

    async def ask(answers: Any) -> list[tuple[str, str]]:
        async def asked() -> Any:
            if isinstance(answers, Exception):
                raise answers
            return answers

        return await answered(asked(), own=own)

    assert asyncio.run(ask([("other", "theirs"), RuntimeError("died"), ("me", "older")])) == [
        ("other", "theirs"),
        ("me", "mine"),
    ]
    assert asyncio.run(ask(TimeoutError("too late"))) == [own]
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled(own))


async def cancelled(own: tuple[str, str]) -> None:
    asking = asyncio.ensure_future(answered(asyncio.Event().wait(), own=own))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    asking.cancel()
    await asking
