"""How far a set of jobs is, how fast it goes and how long it will take: from records read now and then."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from omnifarm.clock import Clock
from omnifarm.farm.job import JobRecord, JobState
from omnifarm.farm.overview import QueueGlance

_WINDOW_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One look at a set of jobs."""

    steps_done: int
    """Steps taken by jobs that are neither failed nor cancelled."""
    steps_total: int
    """Steps of all jobs that are neither failed nor cancelled."""
    committed: int
    """Jobs done."""
    failed: int
    """Jobs given up."""
    cancelled: int
    """Jobs called off."""
    total: int
    """Jobs in all."""
    steps_per_s: float | None
    """Rate over the last minute, or None while it is unknown."""
    left_s: float | None
    """Seconds left at that rate, or None while it is unknown."""

    @property
    def is_finished(self) -> bool:
        """Whether no job is left to be learned."""
        return self.committed + self.failed + self.cancelled == self.total

    def line(self) -> str:
        """Return the look as one line of text."""
        parts = [f"{self.committed} of {self.total} concepts learned"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.cancelled:
            parts.append(f"{self.cancelled} cancelled")
        share = 100.0 * self.steps_done / self.steps_total if self.steps_total else 100.0
        parts.append(f"step {self.steps_done}/{self.steps_total} ({share:.0f} %)")
        if self.steps_per_s is not None:
            parts.append(f"{self.steps_per_s:.1f} steps/s")
        if self.left_s is not None:
            parts.append(f"{duration(self.left_s)} left")
        return ", ".join(parts)


class ProgressMeter:
    """Turns successive looks at the records into rates.

    Args:
        clock: Times the looks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, records: Sequence[JobRecord]) -> Progress:
        """Take the records as they are now."""
        failed, cancelled = (
            sum(record.state is state for record in records) for state in (JobState.FAILED, JobState.CANCELLED)
        )
        alive = [record for record in records if record.state not in (JobState.FAILED, JobState.CANCELLED)]
        return self._progress(
            done=sum(one.num_steps if one.state is JobState.COMMITTED else one.step for one in alive),
            steps=sum(one.num_steps for one in alive),
            committed=sum(one.state is JobState.COMMITTED for one in alive),
            failed=failed,
            cancelled=cancelled,
            total=len(records),
        )

    def glance(self, seen: QueueGlance, *, num_steps: int) -> Progress:
        """Take a whole queue as its index shows it; every job is taken to have `num_steps`.

        The steps of jobs that rest, or were given back, are seen when somebody holds them again.
        """
        return self._progress(
            done=seen.committed * num_steps + sum(record.step for record in seen.held),
            steps=(seen.jobs - seen.failed - seen.cancelled) * num_steps,
            committed=seen.committed,
            failed=seen.failed,
            cancelled=seen.cancelled,
            total=seen.jobs,
        )

    def _progress(self, *, done: int, steps: int, committed: int, failed: int, cancelled: int, total: int) -> Progress:
        rate = self._rate(done)
        return Progress(
            steps_done=done,
            steps_total=steps,
            committed=committed,
            failed=failed,
            cancelled=cancelled,
            total=total,
            steps_per_s=rate,
            left_s=(steps - done) / rate if rate else None,
        )

    def _rate(self, done: int) -> float | None:
        now_s = self._clock.monotonic_s()
        # Start-up is not speed: the count begins with the first step seen, and anew when a lane fell back to its
        # checkpoint.
        if not self._seen or done < self._seen[-1][1] or self._seen[-1][1] == 0:
            self._seen.clear()
        self._seen.append((now_s, done))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        (began_s, first), (_, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now_s - began_s) if now_s > began_s and last > first else None


def duration(seconds: float) -> str:
    """Return seconds as "42 s", "3 min 20 s" or "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
