"""What happened to jobs, one line each: to the log, and if wished as append-only objects in the store."""

import json
import logging
import secrets
from typing import Any, Protocol

from omnifarm.clock import Clock
from omnifarm.errors import StoreError
from omnifarm.farm.metrics import Metrics
from omnifarm.logs import event
from omnifarm.store.base import Store

_logger = logging.getLogger(__name__)


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
        if name == "lease_taken_over":
            self._metrics.count("omnifarm_lease_takeovers_total")


class StoreEvents:
    """Events as lines of the log and as one small JSON-lines object each, named so that a listing is in time order.

    Args:
        store: Where to write.
        clock: Stamps the events.
        prefix: Beginning of the keys.
    """

    def __init__(self, store: Store, *, clock: Clock, prefix: str = "events/") -> None:
        self._store = store
        self._clock = clock
        self._prefix = prefix

    def emit(self, name: str, **fields: Any) -> None:
        """See `EventSink.emit`; a store that fails costs the event, not the job."""
        event(_logger, name, **fields)
        now_s = self._clock.now_s()
        line = json.dumps({"time_s": now_s, "event": name, **fields}, default=str, ensure_ascii=False) + "\n"
        key = f"{self._prefix}{int(now_s * 1000):015d}-{secrets.token_hex(6)}.jsonl"
        try:
            self._store.put(key, line.encode(), if_none_match=True)
        except StoreError as error:
            event(_logger, "event_not_stored", level=logging.WARNING, lost=name, error=str(error))
