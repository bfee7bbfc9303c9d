"""One event, one line of JSON on standard error: a constant message plus fields."""

import json
import logging
import sys
import time
from typing import Any, TextIO


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, event, then its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def event(logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event.

    Args:
        logger: The module's logger.
        name: Constant event name such as "lease_taken"; never formatted with values.
        level: Standard logging level.
        **fields: JSON-compatible values (concept, step, rank ...). Never secrets, never prompt text.
    """
    logger.log(level, name, extra={"fields": fields})


def configure(*, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send OmniFarm's events of at least `level` to `stream` (standard error by default), once.

    Safe to repeat: the handler is replaced, not added.
    """
    root = logging.getLogger("omnifarm")
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonLines())
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(level.upper())
