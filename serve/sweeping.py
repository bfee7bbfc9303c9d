"""Erasing what is kept for a time only, of every tenant: done by each replica, so that it is done wherever it is served."""

import logging

from omnifarm.clock import Clock
from omnifarm.errors import OmniFarmError
from omnifarm.logs import event
from omnifarm.tenancy import ACCOUNTS
from serve.idempotency import sweep
from serve.spaces import Spaces

_LOG = logging.getLogger("omnifarm.serve")
EVERY_S = 3600.0
"""Seconds between two sweeps of a replica."""


class Sweeper:
    """Erases kept replies whose time is over.

    Args:
        spaces: The tenants' stores.
        clock: Time.
    """

    def __init__(self, spaces: Spaces, *, clock: Clock) -> None:
        self._spaces = spaces
        self._clock = clock

    def run_forever(self) -> None:
        """Sweep until the process ends; a sweep that fails is logged, and the next one does its work."""
        while True:
            try:
                self.sweep()
            except OmniFarmError as error:
                event(_LOG, "sweep_failed", level=logging.ERROR, error=str(error))
            self._clock.sleep_s(EVERY_S)

    def sweep(self) -> int:
        """Go through the stores of the owner and of every tenant once; return how many objects were erased.

        Raises:
            StoreError: A store does not answer.
        """
        keys = [key for key in self._spaces.root.list(ACCOUNTS) if key.endswith(".json")]
        tenants = ["", *(key.removeprefix(ACCOUNTS).removesuffix(".json") for key in keys)]
        return sum(sweep(self._spaces.of(tenant).store, now_s=self._clock.now_s()) for tenant in tenants)
