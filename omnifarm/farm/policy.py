"""When to try again: pure decisions over plain values, carried out by the queue."""

import hashlib
from dataclasses import dataclass, replace

from omnifarm.errors import ConfigError
from omnifarm.farm.job import JobRecord, JobState

_MAX_TEXT = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often a job is tried, and how long it rests in between."""

    max_strikes: int = 5
    """Attempts in a row that end badly without getting a checkpoint further, before the job ends as failed. A job that
    kills its worker each time ends here; one that shares machines with misfortune does not."""
    first_delay_s: float = 5.0
    """Rest after the first strike; doubles from one to the next."""
    max_delay_s: float = 300.0
    """Longest rest."""

    def __post_init__(self) -> None:
        if self.max_strikes < 1:
            raise ConfigError(f"retry policy: max_strikes must be at least 1, found {self.max_strikes}")
        if not 0 <= self.first_delay_s <= self.max_delay_s:
            raise ConfigError(
                f"retry policy: 0 <= first_delay_s <= max_delay_s, found {self.first_delay_s} and {self.max_delay_s}"
            )

    def is_exhausted(self, *, strikes: int) -> bool:
        """Whether a job with `strikes` is given up."""
        return strikes >= self.max_strikes

    def delay_s(self, *, strikes: int, job_id: str) -> float:
        """Return the rest in seconds after strike number `strikes` (>= 1).

        Spread over 50 % to 100 % of the doubled delay by the job's id, so that jobs that failed together come back
        apart, and a test can tell when.
        """
        delay_s = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(strikes - 1, 32))
        return delay_s * (0.5 + 0.5 * _share(job_id, strikes))

    def found(self, record: JobRecord, *, now_s: float, ttl_s: float) -> JobRecord | None:
        """Return an unfinished job as it is for somebody who would lease it for `ttl_s` now, or None while nobody may.

        A job whose lease has run out has one strike more, or is failed with its last. A suspect rests first, for a time
        of its own within eight leases: a worker that dies takes its whole cell with it, and suspects that began
        together would end together, however often.
        """
        if record.state is JobState.QUEUED:
            return record if record.not_before_s <= now_s else None
        if record.lease is None or record.lease.expires_at_s > now_s:
            return None
        reason = f"given up: {record.lease.worker} and workers before it fell silent; the concept may not fit in memory"
        struck = self.end_attempt(record, now_s=now_s, reason=reason, traceback=record.traceback)
        if struck.state is JobState.FAILED:
            return struck
        rest_s = 8 * ttl_s * _share(record.job_id, struck.strikes) if struck.is_suspect else 0.0
        return replace(record, strikes=struck.strikes) if record.lease.expires_at_s + rest_s <= now_s else None

    def end_attempt(self, record: JobRecord, *, now_s: float, reason: str, traceback: str | None) -> JobRecord:
        """Return a held record as it is after its attempt ended badly: resting, or failed with its last strike.

        An attempt that wrote a checkpoint further on than the one it began with was going well: whatever ended it, a
        lost machine or a neighbour, is not held against the job.

        Args:
            record: The record, with its lease.
            now_s: Seconds since the epoch.
            reason: Why it ended; cut to 20,000 characters.
            traceback: Where; the last 20,000 characters are kept.
        """
        assert record.lease is not None
        strikes = 0 if record.saved_step > record.lease.from_step else record.strikes + 1
        return replace(
            record,
            state=JobState.FAILED if self.is_exhausted(strikes=strikes) else JobState.QUEUED,
            lease=None,
            strikes=strikes,
            not_before_s=now_s + self.delay_s(strikes=max(1, strikes), job_id=record.job_id),
            error=reason[:_MAX_TEXT],
            traceback=None if traceback is None else traceback[-_MAX_TEXT:],
        )


def _share(job_id: str, strikes: int) -> float:
    """Return a number in [0, 1] that is a job's own at this strike."""
    return hashlib.sha256(f"{job_id}/{strikes}".encode()).digest()[0] / 255
