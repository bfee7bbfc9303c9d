"""Whether the store answers, asked once for however many want to know: `/ready` is open to everybody."""

import asyncio

import anyio.to_thread

from omnifarm.clock import Clock
from omnifarm.store.base import Store
from omnifarm.tenancy import ACCOUNTS

BELIEVED_S = 2.0
"""Seconds for which an answer is believed."""


class Readiness:
    """Looks at a store, one look at a time; used by one event loop.

    Args:
        store: Where accounts lie.
        clock: Ages what was seen.
    """

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._look: asyncio.Future[None] | None = None
        self._looked_s = 0.0

    async def check(self) -> None:
        """Return if the store answers, or did a moment ago.

        Raises:
            StoreError: It does not.
        """
        now_s = self._clock.monotonic_s()
        if self._look is None or (self._look.done() and now_s - self._looked_s >= BELIEVED_S):
            self._looked_s = now_s
            self._look = asyncio.ensure_future(anyio.to_thread.run_sync(self._list))
        # Who leaves takes nobody else's look away.
        await asyncio.shield(self._look)

    def _list(self) -> None:
        next(self._store.list(ACCOUNTS, limit=1), None)
