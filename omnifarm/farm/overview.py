"""How a queue stands: exactly, from every record; or at a glance, from the index, however long the queue is."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

from omnifarm.errors import NotFoundError
from omnifarm.farm.index import CANCELLED, FAILED, LATER, READY
from omnifarm.farm.job import JobRecord, JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import as_unreadable

_READ_TOGETHER = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueSummary:
    """Counts over records."""

    counts: Mapping[JobState, int]
    """Jobs in each state; every state is present."""
    steps_done: int
    """Steps reported, over all jobs that may still be learned or are (committed jobs count whole)."""
    steps_total: int
    """Steps of all jobs that have not failed and are not cancelled."""

    @classmethod
    def of(cls, records: Iterable[JobRecord]) -> Self:
        """Summarise records."""
        records = list(records)
        found = Counter(record.state for record in records)
        alive = [record for record in records if record.state not in (JobState.FAILED, JobState.CANCELLED)]
        return cls(
            counts={state: found[state] for state in JobState},
            steps_done=sum(r.num_steps if r.state is JobState.COMMITTED else r.step for r in alive),
            steps_total=sum(r.num_steps for r in alive),
        )

    @property
    def total(self) -> int:
        """Number of jobs."""
        return sum(self.counts.values())

    @property
    def is_finished(self) -> bool:
        """Whether no worker has anything left to do."""
        return all(state.is_finished or not count for state, count in self.counts.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueGlance:
    """A queue as its index shows it: one request per thousand jobs and one per held job, or per ready one at its end."""

    jobs: int
    """Records; here and below without those known to be unreadable."""
    ready: int
    """Jobs that may be leased now."""
    held: tuple[JobRecord, ...]
    """Records held by workers."""
    resting: int
    """Jobs that wait out a rest after a failed attempt."""
    failed: int
    """Jobs given up."""
    cancelled: int
    """Jobs called off."""
    unreadable: int
    """Records that were found unreadable: how their jobs stand nobody knows."""

    @property
    def committed(self) -> int:
        """Jobs done."""
        return self.finished - self.failed - self.cancelled

    @property
    def finished(self) -> int:
        """Jobs with nothing left to do: committed, failed or cancelled."""
        return self.jobs - self.ready - len(self.held) - self.resting

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "jobs": self.jobs,
            "ready": self.ready,
            "held": len(self.held),
            "resting": self.resting,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "committed": self.committed,
            "finished": self.finished,
            "unreadable": self.unreadable,
            "steps_of_held": sum(record.step for record in self.held),
        }


def glance(queue: JobQueue) -> QueueGlance:
    """Look at a queue through its index. What moves during the look may be counted twice or not at all."""
    bad = queue.records.unreadable
    queue.list(list(bad))  # a person may have mended them
    later = queue.list(entry.job_id for entry in queue.index.entries(LATER))
    ready = [entry.job_id for entry in queue.index.entries(READY)]
    if not later and len(ready) <= _READ_TOGETHER:
        # What nobody takes up may be what nobody can read: then there is nothing left to wait for.
        queue.list(ready)
    ids = queue.records.ids()
    unreadable = sum(job_id in bad for job_id in ids)
    return QueueGlance(
        jobs=len(ids) - unreadable,
        ready=sum(job_id not in bad for job_id in ready),
        held=tuple(record for record in later if record.state.is_held),
        resting=sum(record.state is JobState.QUEUED for record in later),
        failed=sum(entry.job_id not in bad for entry in queue.index.entries(FAILED)),
        cancelled=sum(entry.job_id not in bad for entry in queue.index.entries(CANCELLED)),
        unreadable=unreadable,
    )


def steps_of_one(queue: JobQueue, job_ids: Iterable[str]) -> int:
    """Return the steps of the first of some jobs whose record can be read, or 1 where no such job is near the front."""
    for job_id in islice(job_ids, _READ_TOGETHER):
        with contextlib.suppress(NotFoundError):
            found = queue.records.read_one_of_many(job_id)
            if found is not None:
                return found[0].num_steps
    return 1


def outcome(submitted: Sequence[JobRecord], *, queue: JobQueue) -> list[JobRecord]:
    """Return submitted jobs as they are now, by name, then id; those that were deleted since are left out.

    One whose record cannot be read counts as failed: nobody can say that its concept is learned.
    """
    found = queue.list(record.job_id for record in submitted)
    reasons = queue.records.unreadable
    found += [as_unreadable(one, reason=reasons[one.job_id]) for one in submitted if one.job_id in reasons]
    return sorted(found, key=lambda record: (record.name, record.job_id))


class OwnJobs:
    """The jobs of one request among all of a queue, until they are over: about one request a look and one more a job.

    A job that was seen to be over counts as over, also when somebody retries it. Not safe for concurrent use.

    Args:
        queue: The queue.
        job_ids: Which are its own.
    """

    def __init__(self, queue: JobQueue, job_ids: Iterable[str]) -> None:
        self._queue = queue
        self._left = list(job_ids)

    def are_finished(self) -> bool:
        """Whether none of them is left to do: committed, failed, cancelled or deleted.

        Raises:
            StoreError: The store does not answer.
        """
        size = 1
        while self._left:
            # One unfinished job is answer enough; behind a finished one there may be many, which are read together.
            looked_at = self._left[-size:]
            unfinished = {record.job_id for record in self._queue.list(looked_at) if not record.state.is_finished}
            self._left[-size:] = [job_id for job_id in looked_at if job_id in unfinished]
            if unfinished:
                return False
            size = _READ_TOGETHER
        return True


class StateChanges:
    """Turns successive looks at a queue into the moves of its jobs: one request for each job that is held no longer.

    What was leased and ended between two looks, or never was leased, shows in the totals alone.

    Args:
        queue: The queue.
    """

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._held: dict[str, JobRecord] = {}

    def look(self, seen: QueueGlance) -> list[JobRecord]:
        """Return the records of jobs whose state or worker is not what it was at the last look, as they are now."""
        before, self._held = self._held, {record.job_id: record for record in seen.held}
        moved = [record for record in seen.held if _standing(record) != _standing(before.get(record.job_id))]
        return self._queue.list(before.keys() - self._held.keys()) + moved


def _standing(record: JobRecord | None) -> tuple[JobState, str] | None:
    return None if record is None or record.lease is None else (record.state, record.lease.token)
