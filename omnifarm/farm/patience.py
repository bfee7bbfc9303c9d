"""How a worker bears a store that is away: what could not be done is left for later, until it has lasted too long."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator

from omnifarm.clock import Clock
from omnifarm.errors import StoreError
from omnifarm.farm.metrics import Metrics
from omnifarm.logs import event

_logger = logging.getLogger(__name__)


class Patience:
    """Counts how long a store has been away, for each thing that is done with it. Not safe for concurrent use.

    Apart, because a store may answer whoever reads and refuse every write: a read is no sign that a commit will succeed.

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
        self._away_since_s: dict[str, float] = {}

    @property
    def is_tried(self) -> bool:
        """Whether something failed when it was tried last."""
        return bool(self._away_since_s)

    @contextlib.contextmanager
    def bear(self, what: str, *, is_endless: bool = False) -> Iterator[None]:
        """Go on when the store cannot be reached inside the block, unless that has lasted for too long.

        Args:
            what: What is done, constant; enter the block also when there is nothing to do, or an old failure stays.
            is_endless: Whether it may last for ever: nothing that is held waits for it.

        Raises:
            StoreError: It has.
        """
        try:
            yield
        except StoreError as error:
            now_s = self._clock.monotonic_s()
            since_s = self._away_since_s.setdefault(what, now_s)
            self._metrics.count("omnifarm_store_errors_total")
            event(_logger, "store_away", level=logging.WARNING, worker=self._worker, doing=what, error=str(error))
            if now_s - since_s > self._limit_s and not is_endless:
                raise
        else:
            self._away_since_s.pop(what, None)

    def bear_each(self, what: str, tries: Iterable[Callable[[], None]], *, is_endless: bool = False) -> None:
        """`bear` several things of one kind; one that fails keeps none behind it from being tried.

        Raises:
            StoreError: One of them has failed, or another before it, at every call for too long.
        """
        with self.bear(what, is_endless=is_endless):
            failed: StoreError | None = None
            for attempt in tries:
                try:
                    attempt()
                except StoreError as error:
                    failed = error
            if failed is not None:
                raise failed
