"""Forgetting what was kept for a time only, and what was deleted: done by each replica, wherever it is served."""

import logging
from collections.abc import Callable

from omnifarm.clock import Clock
from omnifarm.errors import OmniFarmError
from omnifarm.logs import event
from omnifarm.serving.engine import Engine
from omnifarm.tenancy import ACCOUNTS
from serve.idempotency import sweep
from serve.origins import Origins
from serve.spaces import Spaces

_LOG = logging.getLogger("omnifarm.serve")
EVERY_S = 3600.0
"""Seconds between two sweeps of a replica through all stores."""
LOOK_EVERY_S = 5.0
"""Seconds between two looks for concepts that were deleted on another replica."""
LOOK_AT = 50
"""Concepts looked for at a time, one small request each: at most ten requests a second, however many are in memory. A
round of 50 takes one look, a round of 10,000 takes 17 minutes."""


class Sweeper:
    """Erases kept replies whose time is over, and forgets concepts that were deleted.

    Args:
        spaces: The tenants' stores.
        engine: The replica's, with concepts in memory.
        origins: What the replica remembers of what concepts were learned from.
        clock: Time.
    """

    def __init__(self, spaces: Spaces, *, engine: Engine, origins: Origins, clock: Clock) -> None:
        self._spaces = spaces
        self._engine = engine
        self._origins = origins
        self._clock = clock

    def run_forever(self) -> None:
        """Look and sweep until the process ends; what fails is logged, and the next time does its work."""
        swept_s: float | None = None
        while True:
            self._try(self.look)
            now_s = self._clock.monotonic_s()
            if swept_s is None or now_s - swept_s >= EVERY_S:
                swept_s = now_s
                self._try(self.sweep)
            self._clock.sleep_s(LOOK_EVERY_S)

    def look(self) -> int:
        """Forget concepts in memory that were deleted elsewhere, a few at a time; return how many.

        Raises:
            StoreError: A store does not answer.
        """
        self._origins.let_go()
        return self._engine.forget_deleted(limit=LOOK_AT)

    def sweep(self) -> int:
        """Go through the stores of the owner and of every tenant once; return how many objects were erased.

        Raises:
            StoreError: A store does not answer.
        """
        keys = [key for key in self._spaces.root.list(ACCOUNTS) if key.endswith(".json")]
        tenants = ["", *(key.removeprefix(ACCOUNTS).removesuffix(".json") for key in keys)]
        return sum(sweep(self._spaces.of(tenant).store, now_s=self._clock.now_s()) for tenant in tenants)

    def _try(self, work: Callable[[], int]) -> None:
        try:
            work()
        except OmniFarmError as error:
            event(_LOG, "sweep_failed", level=logging.ERROR, error=str(error))
