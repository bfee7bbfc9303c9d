"""Time as a value that is passed in, so that tests never sleep."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch; comparable between machines up to their clock skew."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only grow; for durations inside one process."""
        ...

    def sleep_s(self, duration_s: float) -> None:
        """Let `duration_s` seconds pass."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds that only grow."""
        return time.monotonic()

    def sleep_s(self, duration_s: float) -> None:
        """Block the calling thread for `duration_s` seconds."""
        time.sleep(duration_s)


class ManualClock:
    """A clock that moves only when told to; sleeping moves it."""

    def __init__(self, start_s: float = 1_700_000_000.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """The time last set."""
        return self._now_s

    def monotonic_s(self) -> float:
        """The same hands: nothing else moves them."""
        return self._now_s

    def sleep_s(self, duration_s: float) -> None:
        """Advance by `duration_s` seconds at once."""
        self.advance_s(duration_s)

    def advance_s(self, duration_s: float) -> None:
        """Move the hands forward by `duration_s` seconds (>= 0)."""
        if duration_s < 0:
            raise ValueError(f"time runs forward: got {duration_s} s")
        self._now_s += duration_s
