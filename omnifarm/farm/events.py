"""What happened to jobs, one line each in the log of whoever did it.

Not in the store: an object for every move would be one more request for each, and a trail of names that a deletion would
have to find. `omnifarm farm watch --json` prints moves as the records show them.
"""

import logging
from typing import Any, Protocol

from omnifarm.farm.metrics import Metrics
from omnifarm.logs import event

_logger = logging.getLogger(__name__)

_COUNTED = {
    "attempt_failed": "omnifarm_attempts_failed_total",
    "lease_taken_over": "omnifarm_lease_takeovers_total",
}


class EventSink(Protocol):
    """Takes events; never fails its caller."""

    def emit(self, name: str, **fields: Any) -> None:
        """Record event `name` with JSON-compatible `fields`."""
        ...


class LogEvents:
    """Events as lines of the log."""

    def emit(self, name: str, **fields: Any) -> None:
        """See `EventSink.emit`."""
        event(_logger, name, **fields)


class CountedEvents:
    """Events as lines of the log; what Prometheus is to know of them is counted as well.

    Args:
        metrics: Where the counts go.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def emit(self, name: str, **fields: Any) -> None:
        """See `EventSink.emit`."""
        event(_logger, name, **fields)
        if name in _COUNTED:
            self._metrics.count(_COUNTED[name])
