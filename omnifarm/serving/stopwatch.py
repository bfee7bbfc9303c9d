"""Where the time of one request goes."""

import contextlib
from collections.abc import Iterator

from omnifarm.clock import Clock


class Stopwatch:
    """Seconds by phase, from the moment it is made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self._phases: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a `with` block to phase `name` (such as `prefill_s`)."""
        started_s = self._clock.monotonic_s()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + self._clock.monotonic_s() - started_s

    def mark(self, name: str) -> None:
        """Note under `name` the time since the beginning; only the first time counts."""
        self._phases.setdefault(name, self._clock.monotonic_s() - self._started_s)

    def timings(self) -> dict[str, float]:
        """Return every phase so far, and `total_s`."""
        return {**self._phases, "total_s": self._clock.monotonic_s() - self._started_s}
