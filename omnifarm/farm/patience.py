"""How a worker bears a store that is away: what could not be done is left for later, until it has lasted too long."""

import contextlib
import logging
from collections.abc import Iterator

from omnifarm.clock import Clock
from omnifarm.errors import StoreError
from omnifarm.farm.metrics import Metrics
from omnifarm.logs import event

_logger = logging.getLogger(__name__)


class Patience:
    """Counts how long a store has been away. Not safe for concurrent use.

    Args:
        worker: Who waits, for the log.
        limit_s: Seconds after which an error goes through.
        clock: Time.
        metrics: Where errors are counted.
    """

    def __init__(self, worker: str, *, limit_s: float, clock: Clock, metrics: Metrics) -> None:
        self._worker = worker
        self._limit_s = limit_s
        self._clock = clock
        self._metrics = metrics
        self._away_since_s: float | None = None

    @property
    def is_tried(self) -> bool:
        """Whether the last request failed."""
        return self._away_since_s is not None

    @contextlib.contextmanager
    def bear(self, what: str) -> Iterator[None]:
        """Go on when the store cannot be reached inside the block, unless that has lasted for too long.

        Raises:
            StoreError: It has.
        """
        try:
            yield
        except StoreError as error:
            now_s = self._clock.monotonic_s()
            self._away_since_s = now_s if self._away_since_s is None else self._away_since_s
            self._metrics.count("omnifarm_store_errors_total")
            event(_logger, "store_away", level=logging.WARNING, worker=self._worker, doing=what, error=str(error))
            if now_s - self._away_since_s > self._limit_s:
                raise
        else:
            self._away_since_s = None
