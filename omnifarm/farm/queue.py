"""The durable queue: job records in a store, moved by compare-and-swap, with no truth in memory.

Any number of processes may open a queue on the same store. Each operation decides by a record alone and writes it back
only if nobody wrote in between; otherwise it reads again and decides anew. A worker's right to a job is the random
token of its lease: while the record carries the token the worker may renew, give back, complete or fail, even late;
once somebody took the job over, or its record cannot be read any more, each of these raises LeaseLostError and changes
nothing. All operations are safe to repeat after an error, also when it is unknown whether the first try was written. What a person ordered (submit, retry, cancel) is in force once the call returned; a call that raised is to be repeated.

Work is found through the index (`farm/index.py`): leasing a job costs the same at a thousand jobs and at a million.
"""

import random
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace

from omnifarm.clock import Clock
from omnifarm.errors import FarmError, NotFoundError, StoreError
from omnifarm.farm.events import EventSink, LogEvents
from omnifarm.farm.index import LATER, Entry, entry_of
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, Lease, LeaseLostError, UnreadableRecordError
from omnifarm.farm.policy import RetryPolicy
from omnifarm.farm.records import JobRecords
from omnifarm.store.base import Store

_LOOK_S = 5.0
_WINDOW = 8
_SWEEP_WINDOW = 32
_MAX_MISSES = 3
_HeldChange = Callable[[JobRecord, Lease, float], JobRecord]
# Spelled here because inside the class `list` is a method.
_Records = list[JobRecord]
_Entries = list[Entry]


class JobQueue:
    """Jobs of one store. Holds no state but what saves requests; safe to share between threads.

    Args:
        store: Where the records lie; must honour conditional writes (see `store/probe.py`).
        clock: Time for leases; the clocks of all workers must agree to well within a lease.
        policy: When to try again.
        events: Where moves are reported.
        chance: Where to look for work first; default: differs from process to process.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        policy: RetryPolicy | None = None,
        events: EventSink | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._policy = policy if policy is not None else RetryPolicy()
        self._events = events if events is not None else LogEvents()
        self._chance = chance if chance is not None else random.Random(secrets.randbits(64))
        self.records = JobRecords(store, clock=clock, chance=self._chance)
        self.index = self.records.index
        self._submissions: dict[str, tuple[float, list[str]]] = {}
        self._swept_s: dict[str, float] = {}

    def submit(
        self,
        *,
        name: str,
        concept_url: str,
        identity: JobIdentity,
        num_steps: int,
        submission: str = "default",
        priority: int = 5,
        pictures: Iterable[str] = (),
        error: str | None = None,
    ) -> JobRecord:
        """Create a job, or return the one that exists under the same identity, whatever its state.

        A job that still waits takes on the new submission and priority, an unfinished one the place for its next try.

        Args:
            name: The concept's name.
            concept_url: Where its data lie.
            identity: What decides the result.
            num_steps: Steps of the training.
            submission: Which request asks for it; requests of one priority share workers evenly.
            priority: From 0 to 9, higher first.
            pictures: Digests of every picture that its training prepares.
            error: Why the job cannot be tried at all (bad data): its record then starts as failed.
        """
        now_s = self._clock.now_s()
        record = JobRecord(
            name=name,
            concept_url=concept_url,
            identity=identity,
            num_steps=num_steps,
            submission=submission,
            priority=priority,
            state=JobState.QUEUED if error is None else JobState.FAILED,
            error=error,
            pictures=tuple(digest[:16] for digest in pictures),
            created_at_s=now_s,
            updated_at_s=now_s,
        )
        created = self.records.create(record)
        if created is None:
            return self._submit_again(record)
        self._report(created, "job_submitted" if error is None else "job_failed")
        return created

    def get(self, job_id: str) -> JobRecord:
        """Return a job's record.

        Raises:
            NotFoundError: There is no such job.
        """
        return self.records.read(job_id)[0]

    def list(self, job_ids: Iterable[str] | None = None) -> _Records:
        """Return the records of `job_ids` (default: all), by name, then id; one request each, many at a time."""
        return self.records.list(job_ids)

    def is_drained(self, pool: str) -> bool:
        """Whether a pool has nothing left to do: no job whose record can be read is ready, held or resting. Two requests."""
        return self.index.is_empty(pool, but=self.records.unreadable)

    def lease_next(self, worker: str, *, pool: str, ttl_s: float, max: int = 1) -> _Records:
        """Lease up to `max` jobs: queued ones whose rest is over, and those whose lease has expired.

        Among queued jobs the highest priority comes first and submissions of that priority take even turns by lot.
        Expired leases are looked for four times a lease, at random places, so that many workers share the looking.
        A suspect (see `JobRecord.is_suspect`) is leased alone: let nothing join it before it has a checkpoint.

        Args:
            worker: Who asks.
            pool: Which jobs the worker can train, see `JobIdentity.pool`.
            ttl_s: Seconds (> 0) until the leases expire if not renewed.
            max: Most jobs to lease.

        Returns:
            The leased records, possibly none; give them to `heartbeat`, `release`, `complete`, `fail`.

        Raises:
            StoreError: The store failed before anything was leased.
        """
        if ttl_s <= 0:
            raise FarmError(f"a lease must last longer than 0 s, found ttl_s {ttl_s}")
        leased: _Records = []
        try:
            self._sweep(leased, worker, pool=pool, ttl_s=ttl_s, most=max)
            misses = 0
            while not _is_enough(leased, max) and misses < _MAX_MISSES:
                found = self._ready_window(pool, size=_WINDOW + max - len(leased))
                if not found:
                    break
                before = len(leased)
                self._lease_from(found, leased, worker, ttl_s=ttl_s, most=max)
                misses += len(leased) == before
        except StoreError:
            if not leased:
                raise
        return leased

    def heartbeat(self, held: JobRecord, *, step: int, ttl_s: float, saved_step: int | None = None) -> JobRecord:
        """Renew a lease and report a step.

        Args:
            held: The record as leased or last renewed.
            step: Steps done, in [0, num_steps]; may go back when a checkpoint is older than the last report.
            ttl_s: Seconds from now until the lease expires.
            saved_step: Step of the newest checkpoint, if one was written.

        Returns:
            The renewed record.

        Raises:
            LeaseLostError: Somebody else took the job over, or it was ended.
        """

        def renew(record: JobRecord, lease: Lease, now_s: float) -> JobRecord:
            return replace(
                record,
                state=JobState.RUNNING,
                step=step,
                saved_step=max(record.saved_step, saved_step or 0),
                lease=replace(lease, expires_at_s=now_s + ttl_s),
            )

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
            return self._change_held(held, commit, event_name="job_committed")
        except LeaseLostError:
            found = self.records.read_one_of_many(held.job_id)
            if found is None or found[0].artifact != artifact:
                raise
            return found[0]

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
            after = self._policy.end_attempt(record, now_s=now_s, reason=reason, traceback=traceback)
            return after if retryable else replace(after, state=JobState.FAILED)

        return self._change_held(held, end, event_name="attempt_failed")

    def retry(self, job_id: str, *, concept_url: str | None = None) -> JobRecord:
        """Queue a failed or cancelled job again with its strikes forgotten; any other job stays as it is, and is filed.

        `concept_url` says where its data lie now, if they have moved.
        """

        def again(record: JobRecord) -> JobRecord:
            if record.state not in (JobState.FAILED, JobState.CANCELLED):
                return record
            url = concept_url or record.concept_url
            record = replace(record, state=JobState.QUEUED, concept_url=url, strikes=0, attempts=0, not_before_s=0.0)
            # Its checkpoint may have been collected: progress counts from what the next worker really has.
            return replace(record, saved_step=0)

        return self._order(job_id, again, event_name="job_retried")

    def cancel(self, job_id: str) -> JobRecord:
        """Call an unfinished job off; its worker learns it at a heartbeat and erases the checkpoint. Others stay."""

        def call_off(record: JobRecord) -> JobRecord:
            is_over = record.state.is_finished
            return record if is_over else replace(record, state=JobState.CANCELLED, lease=None, saved_step=0)

        return self._order(job_id, call_off, event_name="job_cancelled")

    def _submit_again(self, wanted: JobRecord) -> JobRecord:
        def refile(record: JobRecord) -> JobRecord:
            if record.state.is_finished:
                return record
            record = replace(record, concept_url=wanted.concept_url)
            is_held = record.state.is_held
            return record if is_held else replace(record, submission=wanted.submission, priority=wanted.priority)

        return self._order(wanted.job_id, refile, event_name="job_refiled")

    def _order(self, job_id: str, change: Callable[[JobRecord], JobRecord], *, event_name: str) -> JobRecord:
        """Carry out a person's wish, which may change nothing."""
        before: JobRecord | None = None

        def remember(record: JobRecord) -> JobRecord:
            nonlocal before
            before = record
            return change(record)

        after = self.records.change(job_id, remember)
        if before is None or after.revision != before.revision:
            self._report(after, event_name)
        return after

    def _sweep(self, leased: _Records, worker: str, *, pool: str, ttl_s: float, most: int) -> None:
        """Look at some of the jobs that are held or resting, if it is time to."""
        now_s = self._clock.monotonic_s()
        if most < 1 or now_s - self._swept_s.get(pool, -ttl_s) < ttl_s / 4:
            return
        self._swept_s[pool] = now_s
        found = self.index.window(f"{LATER}{pool}/", size=_SWEEP_WINDOW)
        self._lease_from(found, leased, worker, ttl_s=ttl_s, most=most)

    def _ready_window(self, pool: str, *, size: int) -> _Entries:
        """Return some ready jobs of a submission drawn by lot from those of the highest priority."""
        now_s = self._clock.monotonic_s()
        looked_s, submissions = self._submissions.get(pool, (now_s, []))
        if not submissions or now_s - looked_s >= _LOOK_S:
            submissions = self.index.urgent_submissions(pool)
            self._submissions[pool] = (now_s, submissions)
        while submissions:
            folder = self._chance.choice(submissions)
            found = self.index.window(folder, size=size)
            if found:
                return found
            submissions.remove(folder)
            if not submissions:
                submissions.extend(self.index.urgent_submissions(pool))
        return []

    def _lease_from(self, entries: Iterable[Entry], leased: _Records, worker: str, *, ttl_s: float, most: int) -> None:
        for entry in entries:
            if _is_enough(leased, most):
                return
            try:
                found = self.records.read_one_of_many(entry.job_id)
            except NotFoundError:
                self.index.delete(entry)
                continue
            if found is None:
                continue
            record, etag = found
            if entry_of(record) != entry:
                self.records.mend(entry)
                continue
            taken = self._try_lease(record, etag, worker=worker, ttl_s=ttl_s, is_first=not leased)
            if taken is not None:
                leased.append(taken)

    def _try_lease(
        self, record: JobRecord, etag: str, *, worker: str, ttl_s: float, is_first: bool
    ) -> JobRecord | None:
        now_s, old = self._clock.now_s(), record.lease
        found = self._policy.found(record, now_s=now_s, ttl_s=ttl_s)
        if found is not None and found.state is JobState.FAILED:
            if self.records.swap(record, found, etag) is not None:
                self._report(found, "attempt_failed")
            return None
        if found is None or (found.is_suspect and not is_first):
            return None
        token, step = secrets.token_hex(16), found.saved_step
        lease = Lease(worker=worker, token=token, expires_at_s=now_s + ttl_s, from_step=step)
        after = replace(found, state=JobState.LEASED, lease=lease, attempts=found.attempts + 1, not_before_s=0.0)
        written = self.records.swap(record, after, etag)
        if written is not None:
            name = "job_leased" if old is None else "lease_taken_over"
            self._report(written, name, previous_worker=None if old is None else old.worker)
        return written

    def _change_held(self, held: JobRecord, change: _HeldChange, *, event_name: str | None) -> JobRecord:
        if held.lease is None:
            raise FarmError(f"job {held.name!r} is {held.state.value}: only a leased record can be worked on")
        worker = held.lease.worker

        def change_ours(record: JobRecord) -> JobRecord:
            return change(record, record.require_lease(held), self._clock.now_s())

        try:
            after = self.records.change(held.job_id, change_ours, known=held)
        except UnreadableRecordError as error:
            # Were this more than a lost lease, the worker would end, and what else it holds would wait for others.
            raise LeaseLostError(
                f"job {held.name!r} was leased to {worker}; its record cannot be read any more ({error}): let it go",
                job_id=held.job_id,
                worker=worker,
            ) from error
        if event_name is not None:
            self._report(after, event_name, by=worker)
        return after

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


def _is_enough(leased: _Records, most: int) -> bool:
    return len(leased) >= most or any(record.is_suspect for record in leased)
