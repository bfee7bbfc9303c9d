"""A job: one concept to be learned, as a record in the store.

    queued -> leased -> running -> committed
      ^         |          |`----> failed      (bad data, or too many attempts that got nowhere)
      `---------+----------'                   (released, or to be tried again)

An expired lease is taken over directly: leased or running -> leased by somebody else. A person may cancel whatever is
unfinished, and queue again what failed or was cancelled. The record is all there is to know about a job; workers hold
copies, and every change goes through `farm/queue.py`. The job's id follows from what decides its result, so submitting
the same work twice is one job.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from functools import lru_cache
from types import UnionType
from typing import Any, Self, get_args, get_origin

from omnifarm.errors import FarmError

SCHEMA_VERSION = 2
"""Version of the record's JSON form."""


_ENCODER = json.JSONEncoder(ensure_ascii=False)
_SUBMISSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class LeaseLostError(FarmError):
    """The job belongs to somebody else by now: let its lane go, commit nothing."""


class UnreadableRecordError(FarmError):
    """A job's record is damaged or of another release: the job is left alone, and stops no other."""


class JobState(Enum):
    """Where a job stands; closed."""

    QUEUED = "queued"
    """Waits for a worker, perhaps until its backoff has passed."""
    LEASED = "leased"
    """A worker has it and has not reported a step."""
    RUNNING = "running"
    """A worker has it and reports steps."""
    COMMITTED = "committed"
    """Its artifact is in the store. Final."""
    FAILED = "failed"
    """Given up, with the reason; only a person queues it again."""
    CANCELLED = "cancelled"
    """Called off by a person; only a person queues it again."""

    @property
    def is_finished(self) -> bool:
        """Whether no worker will touch the job again on its own."""
        return self in (JobState.COMMITTED, JobState.FAILED, JobState.CANCELLED)

    @property
    def is_held(self) -> bool:
        """Whether a worker holds a lease on the job."""
        return self in (JobState.LEASED, JobState.RUNNING)


_FROM_HELD = frozenset(JobState)
ALLOWED_MOVES: Mapping[JobState, frozenset[JobState]] = {
    # To itself: filed elsewhere in the queue.
    JobState.QUEUED: frozenset({JobState.QUEUED, JobState.LEASED, JobState.CANCELLED}),
    JobState.LEASED: _FROM_HELD,
    JobState.RUNNING: _FROM_HELD,
    JobState.COMMITTED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
"""From each state, the states a job may move to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobIdentity:
    """What decides a job's result."""

    spec_digest: str
    """Digest of the concept's spec and the bytes of its images."""
    recipe_digest: str
    """Digest of the training recipe."""
    backbone_fingerprint: str
    """Fingerprint of the frozen backbone."""

    @property
    def job_id(self) -> str:
        """32 hex digits over the three parts."""
        return _digest(self.spec_digest, self.recipe_digest, self.backbone_fingerprint)[:32]

    @property
    def pool(self) -> str:
        """The jobs that one worker can train side by side: those of one recipe and one backbone. 16 hex digits."""
        return pool_of(recipe_digest=self.recipe_digest, backbone_fingerprint=self.backbone_fingerprint)


def pool_of(*, recipe_digest: str, backbone_fingerprint: str) -> str:
    """Return the pool of jobs with this recipe on this backbone (see `JobIdentity.pool`)."""
    return _digest(recipe_digest, backbone_fingerprint)[:16]


@lru_cache(maxsize=10_000)
def _digest(*parts: str) -> str:
    # As JSON, so that parts cannot flow into each other.
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A worker's right to a job, until it expires or is renewed."""

    worker: str
    """Who holds it."""
    token: str
    """Random, new for every grant: a worker that leased the same job twice holds two different leases."""
    expires_at_s: float
    """Seconds since the epoch after which anybody may take the job over."""
    from_step: int = 0
    """Step of the checkpoint that the holder started from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """Everything known about one job."""

    name: str
    """The concept's name."""
    concept_url: str
    """Where its data lie."""
    identity: JobIdentity
    """What decides the result."""
    num_steps: int
    """Steps of the whole training (>= 1)."""
    state: JobState = JobState.QUEUED
    """Where the job stands."""
    submission: str = "default"
    """Which request asked for it; requests of one priority share workers evenly."""
    priority: int = 5
    """From 0 to 9; jobs of a higher priority are leased first."""
    attempts: int = 0
    """Leases granted so far, not counting those given back."""
    strikes: int = 0
    """Attempts in a row that ended badly without getting a checkpoint further; too many and the job is given up."""
    lease: Lease | None = None
    """The present lease; exactly the held states have one."""
    step: int = 0
    """Last step reported, in [0, num_steps]."""
    saved_step: int = 0
    """Step of the newest checkpoint known of, in [0, num_steps]."""
    not_before_s: float = 0.0
    """A queued job is not leased before this time; 0 means at once."""
    error: str | None = None
    """Why the last attempt failed, first line first; kept while the job is tried again."""
    traceback: str | None = None
    """Where it failed, for a person to read."""
    artifact: str | None = None
    """Key of the committed artifact; exactly committed jobs have one."""
    pictures: tuple[str, ...] = ()
    """First 16 digits of the digests of every picture that its training prepares, negatives too: by these is found, and
    deleted, what was prepared from them."""
    created_at_s: float
    """When it was submitted."""
    updated_at_s: float
    """When the record last changed."""
    revision: int = 0
    """Number of changes: no two versions of a record have equal bytes."""
    placement: str = ""
    """Random, new whenever the job is filed elsewhere in the queue's index (see `farm/index.py`)."""

    def __post_init__(self) -> None:
        for step in (self.step, self.saved_step):
            if self.num_steps < 1 or not 0 <= step <= self.num_steps:
                raise FarmError(f"job {self.name!r}: step must lie in [0, num_steps], found {step}/{self.num_steps}")
        if not 0 <= self.priority <= 9:
            raise FarmError(f"job {self.name!r}: priority must lie in 0 to 9, found {self.priority}")
        if not _SUBMISSION.fullmatch(self.submission):
            raise FarmError(
                f"a submission is named by 1 to 64 letters, digits, '-' or '_', found {self.submission[:80]!r}"
            )
        if (self.lease is not None) != self.state.is_held:
            raise FarmError(f"job {self.name!r}: only leased and running jobs have a lease, found {self.state.value}")
        if (self.artifact is not None) != (self.state is JobState.COMMITTED):
            raise FarmError(f"job {self.name!r}: only committed jobs have an artifact, found {self.state.value}")

    @property
    def job_id(self) -> str:
        """The digest of its identity."""
        return self.identity.job_id

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what ends its workers: one bad end is anybody's misfortune, two in a row are a sign."""
        return self.strikes >= 2

    def require_lease(self, held: "JobRecord") -> Lease:
        """Return the lease if it is still the one that `held`, a worker's copy, was leased with.

        Raises:
            LeaseLostError: Somebody else took the job over, or it was ended.
        """
        assert held.lease is not None
        if self.lease is None or self.lease.token != held.lease.token:
            owner = self.lease.worker if self.lease is not None else "nobody"
            raise LeaseLostError(
                f"job {held.name!r} was leased to {held.lease.worker}; it is now {self.state.value}, held by {owner}: "
                "let it go",
                job_id=held.job_id,
                worker=held.lease.worker,
            )
        return self.lease

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values, with `schema_version` and `job_id`."""
        # Not `asdict`: it copies deeply, and a queue of a million jobs writes many millions of records.
        values: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        values["identity"] = {name: getattr(self.identity, name) for name in JobIdentity.__slots__}
        values["state"] = self.state.value
        values["lease"] = self.lease and {name: getattr(self.lease, name) for name in Lease.__slots__}
        return {"schema_version": SCHEMA_VERSION, "job_id": self.job_id, **values}

    def encode(self) -> bytes:
        """Return the record as UTF-8 JSON."""
        return _ENCODER.encode(self.to_json()).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the record in `data`.

        Raises:
            UnreadableRecordError: The bytes are no record of this version, or were written for another id.
        """
        try:
            values = json.loads(data)
            version = values.pop("schema_version")
            if version != SCHEMA_VERSION:
                raise UnreadableRecordError(
                    f"a job record of schema {SCHEMA_VERSION} was expected, found {version!r}: "
                    "use the release of OmniFarm that wrote it"
                )
            job_id = values.pop("job_id")
            values["identity"] = JobIdentity(**values["identity"])
            values["state"] = JobState(values["state"])
            values["pictures"] = tuple(values.get("pictures", ()))
            values["lease"] = None if values["lease"] is None else Lease(**values["lease"])
            record = cls(**values)
            for part in (record, record.identity, record.lease):
                _require_types(part)
            if not all(isinstance(digest, str) for digest in record.pictures):
                raise TypeError("pictures holds something else than texts")
        except UnreadableRecordError:
            raise
        except (FarmError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UnreadableRecordError(
                f"a job record was expected, found something else ({error}): delete the object"
            ) from error
        if record.job_id != job_id:
            raise UnreadableRecordError(
                f"job record {job_id!r} holds the identity of {record.job_id!r}: it was edited by hand: delete the object"
            )
        return record


_FIELDS = tuple(field.name for field in fields(JobRecord))


def _accepted(annotation: Any) -> tuple[type, ...]:
    """Return the types of the values that a field may hold; a whole number is a float, too, as in JSON."""
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return (*(get_origin(kind) or kind for kind in kinds), *((int,) if float in kinds else ()))


_TYPES = {
    kind: {field.name: _accepted(field.type) for field in fields(kind)} for kind in (JobRecord, JobIdentity, Lease)
}


def _require_types(part: JobRecord | JobIdentity | Lease | None) -> None:
    """Raise TypeError for a value of the wrong type: it would end whoever compares or counts with it later."""
    for name, accepted in _TYPES[type(part)].items() if part is not None else ():
        found = getattr(part, name)
        if not isinstance(found, accepted):
            raise TypeError(f"{name} is of type {type(found).__name__}")


def check_move(record: JobRecord, *, to: JobState) -> None:
    """Refuse a move the table does not allow.

    Raises:
        FarmError: `record.state` does not lead to `to`.
    """
    if to not in ALLOWED_MOVES[record.state]:
        allowed = ", ".join(sorted(state.value for state in ALLOWED_MOVES[record.state])) or "nothing"
        raise FarmError(
            f"job {record.name!r} is {record.state.value}; that leads to {allowed}, not to {to.value}",
            job_id=record.job_id,
        )
