"""The durable queue: job records in a store, moved by compare-and-swap, with no truth in memory.

Any number of processes may open a queue on the same store. Each operation reads the record, decides by the record
alone, and writes it back only if nobody wrote in between; otherwise it decides anew. A worker's right to a job is the
random token of its lease: while the record carries the token the worker may renew, give back, complete or fail, even
late; once somebody took the job over, each of these raises LeaseLostError and changes nothing. All operations are
safe to repeat after an error, also when it is unknown whether the first try was written.
"""

import contextlib
import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from omnifarm.clock import Clock
from omnifarm.errors import FarmError, NotFoundError, PreconditionError
from omnifarm.farm.events import EventSink, LogEvents
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, Lease, LeaseLostError, check_move
from omnifarm.farm.policy import RetryPolicy
from omnifarm.store.base import Store

_MAX_SWAPS = 100
_MAX_TEXT = 20_000
# Spelled here because inside the class `list` is a method.
_Records = list[JobRecord]
_Ids = list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueSummary:
    """The queue at a glance."""

    counts: Mapping[JobState, int]
    """Jobs in each state; every state is present."""
    steps_done: int
    """Steps reported, over all jobs (committed jobs count whole)."""
    steps_total: int
    """Steps of all jobs that have not failed."""

    @property
    def total(self) -> int:
        """Number of jobs."""
        return sum(self.counts.values())

    @property
    def is_finished(self) -> bool:
        """Whether every job is committed or failed."""
        return all(state.is_finished or not count for state, count in self.counts.items())


class JobQueue:
    """Jobs of one store. Holds no state but a list of committed jobs it need not read again.

    Args:
        store: Where the records lie; must honour conditional writes (see `store/probe.py`).
        clock: Time for leases; the clocks of all workers must agree to well within a lease.
        prefix: Beginning of the records' keys, ending at a slash.
        policy: When to try again.
        events: Where moves are reported.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        prefix: str = "jobs/",
        policy: RetryPolicy | None = None,
        events: EventSink | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._prefix = prefix
        self._policy = policy if policy is not None else RetryPolicy()
        self._events = events if events is not None else LogEvents()
        self._committed: set[str] = set()

    def submit(
        self, *, name: str, concept_url: str, identity: JobIdentity, num_steps: int, error: str | None = None
    ) -> JobRecord:
        """Create a job, or return the one that exists under the same identity, whatever its state.

        Args:
            name: The concept's name.
            concept_url: Where its data lie.
            identity: What decides the result.
            num_steps: Steps of the training.
            error: Why the job cannot be tried at all (bad data): its record then starts as failed.
        """
        now_s = self._clock.now_s()
        record = JobRecord(
            name=name,
            concept_url=concept_url,
            identity=identity,
            num_steps=num_steps,
            state=JobState.QUEUED if error is None else JobState.FAILED,
            error=error,
            created_at_s=now_s,
            updated_at_s=now_s,
        )
        try:
            self._store.put(self._key(record.job_id), record.encode(), if_none_match=True)
        except PreconditionError:
            return self.get(record.job_id)
        self._report(record, "job_submitted" if error is None else "job_failed")
        return record

    def get(self, job_id: str) -> JobRecord:
        """Return a job's record.

        Raises:
            NotFoundError: There is no such job.
        """
        return self._read(job_id)[0]

    def list(self, job_ids: Iterable[str] | None = None) -> _Records:
        """Return the records of `job_ids` (default: all), by name, then id."""
        records = (record for record, _ in self._scan(self._ids(job_ids)))
        return sorted(records, key=lambda record: (record.name, record.job_id))

    def counts(self, job_ids: Iterable[str] | None = None) -> dict[JobState, int]:
        """Return how many jobs are in each state; every state is present."""
        return dict(self.summary(job_ids).counts)

    def summary(self, job_ids: Iterable[str] | None = None) -> QueueSummary:
        """Return counts and steps over `job_ids` (default: all)."""
        records = self.list(job_ids)
        found = Counter(record.state for record in records)
        alive = [record for record in records if record.state is not JobState.FAILED]
        return QueueSummary(
            counts={state: found[state] for state in JobState},
            steps_done=sum(r.num_steps if r.state is JobState.COMMITTED else r.step for r in alive),
            steps_total=sum(r.num_steps for r in alive),
        )

    def lease_next(self, worker: str, *, ttl_s: float, max: int = 1, job_ids: Iterable[str] | None = None) -> _Records:
        """Lease up to `max` jobs: queued ones whose rest is over, and those whose lease has expired.

        Args:
            worker: Who asks.
            ttl_s: Seconds (> 0) until the leases expire if not renewed.
            max: Most jobs to lease.
            job_ids: Lease only among these; default all. Workers begin at different places, so they seldom collide.

        Returns:
            The leased records, possibly none; give them to `heartbeat`, `release`, `complete`, `fail`.
        """
        if ttl_s <= 0:
            raise FarmError(f"a lease must last longer than 0 s, found ttl_s {ttl_s}")
        leased: _Records = []
        if max < 1:
            return leased
        ids = [job_id for job_id in self._ids(job_ids) if job_id not in self._committed]
        start = int.from_bytes(hashlib.sha256(worker.encode()).digest()[:8], "big") % len(ids) if ids else 0
        for record, etag in self._scan(ids[start:] + ids[:start]):
            taken = self._try_lease(record, etag, worker=worker, ttl_s=ttl_s)
            if taken is not None:
                leased.append(taken)
                if len(leased) == max:
                    break
        return leased

    def heartbeat(self, held: JobRecord, *, step: int, ttl_s: float) -> JobRecord:
        """Renew a lease and report a step.

        Args:
            held: The record as leased or last renewed.
            step: Steps done, in [0, num_steps]; may go back when a checkpoint is older than the last report.
            ttl_s: Seconds from now until the lease expires.

        Returns:
            The renewed record.

        Raises:
            LeaseLostError: Somebody else took the job over, or it was ended.
        """

        def renew(record: JobRecord, lease: Lease, now_s: float) -> JobRecord:
            return replace(record, state=JobState.RUNNING, step=step, lease=replace(lease, expires_at_s=now_s + ttl_s))

        return self._change_held(held, renew, event_name=None)

    def release(self, held: JobRecord) -> JobRecord:
        """Give a job back untried, for instance at shutdown; it may be leased at once and the attempt is not counted.

        Raises:
            LeaseLostError: Somebody else took the job over, or it was ended.
        """

        def give_back(record: JobRecord, lease: Lease, now_s: float) -> JobRecord:
            attempts = record.attempts - 1 if record.attempts else 0
            return replace(record, state=JobState.QUEUED, lease=None, attempts=attempts, not_before_s=0.0)

        return self._change_held(held, give_back, event_name="job_released")

    def complete(self, held: JobRecord, *, artifact: str) -> JobRecord:
        """Mark a job as committed; its artifact must be in the store by now. Safe to repeat with the same artifact.

        Raises:
            LeaseLostError: Somebody else took the job over: the artifact is theirs to commit.
        """

        def commit(record: JobRecord, lease: Lease, now_s: float) -> JobRecord:
            return replace(
                record,
                state=JobState.COMMITTED,
                lease=None,
                step=record.num_steps,
                artifact=artifact,
                error=None,
                traceback=None,
            )

        try:
            record = self._change_held(held, commit, event_name="job_committed")
        except LeaseLostError:
            record = self.get(held.job_id)
            if record.artifact != artifact:
                raise
        self._committed.add(held.job_id)
        return record

    def fail(self, held: JobRecord, *, reason: str, retryable: bool, traceback: str | None = None) -> JobRecord:
        """End an attempt: the job is queued again after a rest, or failed for good.

        Args:
            held: The record as leased or last renewed.
            reason: Why, for the user; the first line is shown in tables. Never a secret.
            retryable: Whether another try may go better. Bad data is not: the same data would fail again.
            traceback: Where, for developers.

        Raises:
            LeaseLostError: Somebody else took the job over, or it was ended.
        """

        def end(record: JobRecord, lease: Lease, now_s: float) -> JobRecord:
            return self._ended(record, now_s, reason=reason, retryable=retryable, traceback=traceback)

        return self._change_held(held, end, event_name="attempt_failed")

    def retry(self, job_id: str) -> JobRecord:
        """Queue a failed or cancelled job again, its attempts forgotten; another job is returned as it is."""
        for _ in range(_MAX_SWAPS):
            record, etag = self._read(job_id)
            if record.state not in (JobState.FAILED, JobState.CANCELLED):
                return record
            after = replace(record, state=JobState.QUEUED, attempts=0, not_before_s=0.0)
            written = self._swap(record, after, etag)
            if written is not None:
                self._report(written, "job_retried")
                return written
        raise _too_busy(job_id)

    def cancel(self, job_id: str, *, reason: str) -> JobRecord:
        """Call an unfinished job off; a finished one is returned as it is.

        Whoever holds it finds its lease gone at the next heartbeat and lets the lane go. Safe to repeat.

        Raises:
            NotFoundError: There is no such job.
        """
        for _ in range(_MAX_SWAPS):
            record, etag = self._read(job_id)
            if record.state.is_finished:
                return record
            after = replace(record, state=JobState.CANCELLED, lease=None, not_before_s=0.0, error=reason[:_MAX_TEXT])
            written = self._swap(record, after, etag)
            if written is not None:
                self._report(written, "job_cancelled")
                return written
        raise _too_busy(job_id)

    def forget(self, job_id: str) -> None:
        """Delete the record of a finished job, so that the same work may be submitted anew. Safe to repeat.

        Raises:
            FarmError: The job is unfinished: somebody may hold it; cancel it first.
        """
        with contextlib.suppress(NotFoundError):
            record = self.get(job_id)
            if not record.state.is_finished:
                raise FarmError(f"job {record.name!r} is {record.state.value}; cancel it before it is forgotten")
        self._store.delete(self._key(job_id))

    def _try_lease(self, record: JobRecord, etag: str, *, worker: str, ttl_s: float) -> JobRecord | None:
        now_s = self._clock.now_s()
        if record.state is JobState.COMMITTED:
            self._committed.add(record.job_id)
        is_taken_over = record.lease is not None and record.lease.expires_at_s <= now_s
        if not is_taken_over and not (record.state is JobState.QUEUED and record.not_before_s <= now_s):
            return None
        if record.lease is not None and self._policy.is_exhausted(attempts=record.attempts):
            reason = (
                f"given up after {record.attempts} attempts: the last worker, {record.lease.worker}, fell silent at "
                f"step {record.step}; the concept may not fit in memory"
            )
            after = self._ended(record, now_s, reason=reason, retryable=True, traceback=record.traceback)
            written = self._swap(record, after, etag)
            if written is not None:
                self._report(written, "attempt_failed")
            return None
        lease = Lease(worker=worker, token=secrets.token_hex(16), expires_at_s=now_s + ttl_s)
        after = replace(record, state=JobState.LEASED, lease=lease, attempts=record.attempts + 1)
        written = self._swap(record, after, etag)
        if written is not None:
            previous = record.lease.worker if record.lease is not None else None
            self._report(written, "lease_taken_over" if is_taken_over else "job_leased", previous_worker=previous)
        return written

    def _ended(
        self, record: JobRecord, now_s: float, *, reason: str, retryable: bool, traceback: str | None
    ) -> JobRecord:
        is_final = not retryable or self._policy.is_exhausted(attempts=record.attempts)
        rest_s = 0.0 if is_final else self._policy.delay_s(attempts=max(1, record.attempts), job_id=record.job_id)
        return replace(
            record,
            state=JobState.FAILED if is_final else JobState.QUEUED,
            lease=None,
            not_before_s=now_s + rest_s,
            error=reason[:_MAX_TEXT],
            traceback=None if traceback is None else traceback[-_MAX_TEXT:],
        )

    def _change_held(
        self,
        held: JobRecord,
        change: Callable[[JobRecord, Lease, float], JobRecord],
        *,
        event_name: str | None,
    ) -> JobRecord:
        if held.lease is None:
            raise FarmError(f"job {held.name!r} is {held.state.value}: only a leased record can be worked on")
        for _ in range(_MAX_SWAPS):
            record, etag = self._read(held.job_id)
            if record.lease is None or record.lease.token != held.lease.token:
                owner = record.lease.worker if record.lease is not None else "nobody"
                raise LeaseLostError(
                    f"job {held.name!r} was leased to {held.lease.worker}; it is now {record.state.value}, held by "
                    f"{owner}: let it go",
                    job_id=held.job_id,
                    worker=held.lease.worker,
                )
            after = self._swap(record, change(record, record.lease, self._clock.now_s()), etag)
            if after is not None:
                if event_name is not None:
                    self._report(after, event_name, by=held.lease.worker)
                return after
        raise _too_busy(held.job_id)

    def _swap(self, before: JobRecord, after: JobRecord, etag: str) -> JobRecord | None:
        """Write `after` over exactly the version `before`; None if somebody else wrote first."""
        check_move(before, to=after.state)
        after = replace(after, revision=before.revision + 1, updated_at_s=self._clock.now_s())
        with contextlib.suppress(PreconditionError):
            self._store.put(self._key(before.job_id), after.encode(), if_match=etag)
            return after
        return None

    def _read(self, job_id: str) -> tuple[JobRecord, str]:
        found = self._store.get(self._key(job_id))
        return JobRecord.decode(found.data), found.etag

    def _scan(self, job_ids: Iterable[str]) -> Iterator[tuple[JobRecord, str]]:
        for job_id in job_ids:
            with contextlib.suppress(NotFoundError):  # deleted since it was listed
                yield self._read(job_id)

    def _ids(self, job_ids: Iterable[str] | None) -> _Ids:
        if job_ids is not None:
            return list(dict.fromkeys(job_ids))
        keys = self._store.list(self._prefix)
        return [key[len(self._prefix) : -len(".json")] for key in keys if key.endswith(".json")]

    def _key(self, job_id: str) -> str:
        return f"{self._prefix}{job_id}.json"

    def _report(self, record: JobRecord, name: str, **fields: str | None) -> None:
        self._events.emit(
            name,
            job_id=record.job_id,
            concept=record.name,
            state=record.state.value,
            worker=None if record.lease is None else record.lease.worker,
            attempts=record.attempts,
            step=record.step,
            error=(record.error or "").partition("\n")[0] or None,
            **fields,
        )


def _too_busy(job_id: str) -> FarmError:
    return FarmError(
        f"job {job_id} changed {_MAX_SWAPS} times while it was being written: does the store honour If-Match?",
        job_id=job_id,
    )
