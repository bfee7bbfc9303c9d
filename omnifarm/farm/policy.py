"""When to try again: pure decisions over plain values, carried out by the queue."""

import hashlib
from dataclasses import dataclass

from omnifarm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often a job is tried, and how long it rests in between."""

    max_attempts: int = 5
    """Leases a job gets before it ends as failed; a job that kills its worker each time ends here too."""
    first_delay_s: float = 5.0
    """Rest after the first failed attempt; doubles from one attempt to the next."""
    max_delay_s: float = 300.0
    """Longest rest."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigError(f"retry policy: max_attempts must be at least 1, found {self.max_attempts}")
        if not 0 <= self.first_delay_s <= self.max_delay_s:
            raise ConfigError(
                f"retry policy: 0 <= first_delay_s <= max_delay_s, found {self.first_delay_s} and {self.max_delay_s}"
            )

    def is_exhausted(self, *, attempts: int) -> bool:
        """Whether a job that was leased `attempts` times is given up."""
        return attempts >= self.max_attempts

    def delay_s(self, *, attempts: int, job_id: str) -> float:
        """Return the rest in seconds after attempt number `attempts` (>= 1).

        Spread over 50 % to 100 % of the doubled delay by the job's id, so that jobs that failed together come back
        apart, and a test can tell when.
        """
        delay_s = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(attempts - 1, 32))
        share = hashlib.sha256(f"{job_id}/{attempts}".encode()).digest()[0] / 255
        return delay_s * (0.5 + 0.5 * share)
