"""Fine-tuning jobs of one tenant: created, looked at, cancelled; the farm's job records hold the truth.

    tuning/<job id>.json                      what was asked for, beside the farm's jobs/<job id>.json
    tuning-newest/<time>-<job id>-<name>      empty; names in this order are jobs from the newest to the oldest
    pending/<tenant>/<job id>                 in the root store: where a trainer looks for work; `-` is the owner

A job's id follows from photographs, facts, recipe and backbone, so asking twice is one job.
"""

import contextlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, Self

from omnifarm.clock import Clock
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import NotFoundError
from omnifarm.farm.erasure import call_off, erase_concept
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, UnreadableRecordError
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import Backbone, submit_concepts
from omnifarm.store.base import Store
from omnifarm.tenancy import TenantLimits
from serve.copies import PREFIX as FOLDERS
from serve.copies import erase_copy
from serve.documents import ConceptDocument, copy_url, plan_copy, write_copy
from serve.errors import MissingError, QuotaError
from serve.idempotency import forget_replies
from serve.shelf import Shelf

PREFIX = "tuning/"
"""Keys of all requests for fine-tuning begin with this."""
PENDING = "pending/"
"""Keys of the trainers' list of work begin with this."""
OWNER = "-"
"""The owner's name in the list of work."""
NEWEST = "tuning-newest/"
"""Keys of the list of all jobs begin with this."""
MAX_JOBS_KEPT = 1000
"""Jobs of a tenant, finished ones included."""
_SCHEMA_VERSION = 1
_ID_PREFIX = "ftjob-"
_FAR_MS = 10**13 - 1
_NEWEST_NAME = re.compile(rf"{NEWEST}\d{{13}}-([0-9a-f]{{32}})-(.+)")


class JobStatus(Enum):
    """What a client is told; OpenAI's words."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job will not change any more."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


_STATUS = {
    JobState.QUEUED: JobStatus.QUEUED,
    JobState.LEASED: JobStatus.QUEUED,
    JobState.RUNNING: JobStatus.RUNNING,
    JobState.COMMITTED: JobStatus.SUCCEEDED,
    JobState.FAILED: JobStatus.FAILED,
    JobState.CANCELLED: JobStatus.CANCELLED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningRequest:
    """What was asked for."""

    job_id: str
    """32 hex digits, the farm's own id."""
    name: str
    """The concept's name."""
    training_file: str
    """Id of the concept document."""
    recipe: dict[str, Any]
    """Every setting of the training."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The client's own notes."""

    def encode(self) -> bytes:
        """Return the request as UTF-8 JSON."""
        return json.dumps({"schema_version": _SCHEMA_VERSION, **asdict(self)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the request in `data`."""
        values: dict[str, Any] = json.loads(data)
        del values["schema_version"]
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as a client sees it."""

    request: TuningRequest
    """What was asked for."""
    record: JobRecord
    """What the farm says."""
    is_unreadable: bool = False
    """Whether the farm's record cannot be read: `record` then only stands in for it."""

    @property
    def public_id(self) -> str:
        """`ftjob-` and 32 hex digits."""
        return _ID_PREFIX + self.request.job_id

    @property
    def status(self) -> JobStatus:
        """Where it stands."""
        return _STATUS[self.record.state]

    @property
    def is_over(self) -> bool:
        """Whether no trainer needs to look at it again; a record that cannot be read may be mended."""
        return self.status.is_final and not self.is_unreadable

    @property
    def reason(self) -> str:
        """Why its last attempt ended, for the tenant: one line, empty if none did.

        Where the store is, and what went wrong inside the server, is for the operator.
        """
        if self.is_unreadable:
            return "what the server kept of this job cannot be read; its operator can see why"
        if self.record.traceback is not None:
            return "the training failed inside the server; its operator can see why"
        return (self.record.error or "").partition("\n")[0].replace(self.record.concept_url, "the copied files")


class Tuning:
    """Fine-tuning jobs of one tenant. Safe to share between threads.

    Args:
        tenant: Whose they are; empty for the owner.
        root: The root store, for the list of work.
        store: The tenant's own store.
        shelf: Its uploaded files.
        backbone: What is learned on, and how.
        clock: Time.
    """

    def __init__(
        self, tenant: str, *, root: Store, store: Store, shelf: Shelf, backbone: Backbone, clock: Clock
    ) -> None:
        self._pending = f"{PENDING}{tenant or OWNER}/"
        self._root = root
        self._store = store
        self._shelf = shelf
        self._backbone = backbone
        self._queue = JobQueue(store, clock=clock)
        self._repository = ConceptRepository(store)

    def create(
        self,
        document: ConceptDocument,
        *,
        name: str,
        training_file: str,
        overrides: dict[str, Any],
        metadata: dict[str, str],
        limits: TenantLimits,
    ) -> Job:
        """Ask for a concept to be learned. Safe to repeat; a failed or cancelled job is tried again.

        Args:
            document: What to learn.
            name: The concept's name.
            training_file: Where the document came from.
            overrides: Recipe settings of this job.
            metadata: The client's notes.
            limits: What the tenant may have.

        Raises:
            QuotaError: The tenant has as many concepts, jobs or bytes as it may.
            ConceptError: The concept cannot be learned, with every reason.
            ConfigError: A recipe setting cannot be used.
            MissingError: A file does not exist.
        """
        backbone = replace(self._backbone, recipe=self._backbone.recipe.with_overrides(overrides))
        copy = plan_copy(document, name=name, shelf=self._shelf)
        known = self._known(name, copy_url(copy, store=self._store), backbone)
        if known is not None:
            return known
        self._require_room(name, limits=limits)
        url = write_copy(copy, shelf=self._shelf, store=self._store, limits=limits)
        (record,) = submit_concepts(url, queue=self._queue, backbone=backbone)
        if record.job_id in self._queue.records.unreadable and (unreadable := self._read(record.job_id)) is not None:
            return unreadable
        request = TuningRequest(
            job_id=record.job_id,
            name=name,
            training_file=training_file,
            recipe=backbone.recipe.to_json(),
            metadata=metadata,
        )
        self._store.put(_key(record.job_id), request.encode())
        self._store.put(_newest(Job(request=request, record=record)), b"")
        if not record.state.is_finished:
            self._root.put(self._pending + record.job_id, b"")
        return Job(request=request, record=record)

    def get(self, public_id: str) -> Job:
        """Return a job.

        Raises:
            MissingError: The tenant has no such job.
        """
        job_id = public_id.removeprefix(_ID_PREFIX)
        if not public_id.startswith(_ID_PREFIX) or len(job_id) != 32 or not set(job_id) <= set("0123456789abcdef"):
            raise _missing(public_id)
        job = self._read(job_id)
        if job is None:
            raise _missing(public_id)
        return job

    def page(self, *, limit: int, after: str | None = None) -> tuple[list[Job], bool]:
        """Return jobs from the newest to the oldest; reads no others.

        Args:
            limit: At most so many.
            after: Public id of the job before the first one wanted; one that does not exist stands for none.

        Returns:
            The jobs, and whether there are more.
        """
        begin = ""
        if after is not None:
            with contextlib.suppress(MissingError):
                begin = _newest(self.get(after))
        keys = list(self._store.list(NEWEST, after=begin, limit=limit + 1))
        return self._read_all(keys[:limit]), len(keys) > limit

    def of(self, name: str) -> list[Job]:
        """Return the jobs of one concept, newest first."""
        keys = [key for key in self._store.list(NEWEST) if (found := _NEWEST_NAME.fullmatch(key)) and found[2] == name]
        return self._read_all(keys)

    def cancel(self, public_id: str) -> Job:
        """Take a job back: it is not begun, or stops within a worker's heartbeat. Finished jobs stay as they are.

        The copies of its photographs are erased, unless another job learns from the same. Safe to repeat.

        Raises:
            MissingError: The tenant has no such job.
        """
        self._call_off(self.get(public_id))
        job = self.get(public_id)
        if job.status is JobStatus.CANCELLED:
            url = job.record.concept_url
            # The place tells the name, so nobody else's job learns from there.
            jobs = self.of(job.request.name)
            users = [one for one in jobs if one.record.concept_url == url or one.is_unreadable]
            if all(one.status is JobStatus.CANCELLED for one in users):
                erase_copy(self._store, url)
        return job

    def forget(self, name: str) -> int:
        """Delete a concept with everything kept about it: artifacts, jobs and the copies of its photographs.

        Replies kept under an idempotency key go too, all of the tenant's: they do not say whom their pictures show.

        Returns:
            How many learned versions there were.

        Raises:
            MissingError: The tenant has neither a concept nor a job of that name.
        """
        ids = [record.job_id for record in self._queue.list() if record.name == name]
        for job_id in ids:
            self._root.delete(self._pending + job_id)
        folders = list(self._store.erasable(f"{FOLDERS}{name}/"))
        listed = [
            key for key in self._store.erasable(NEWEST) if (one := _NEWEST_NAME.fullmatch(key)) and one[2] == name
        ]
        report = erase_concept(name, store=self._store, queue=self._queue)
        for key in [*folders, *map(_key, ids), *listed]:
            self._store.erase(key)
        forget_replies(self._store)
        if not report.versions and not ids and not folders:
            raise MissingError(f"expected a learned concept, found none named <{name}>", concept=f"<{name}>")
        return report.versions

    def strike(self, job_id: str) -> None:
        """Take a job that is over off the list of work."""
        self._root.delete(self._pending + job_id)
        # Somebody may have asked for it again since it was looked at.
        again = self._read(job_id)
        if again is not None and not again.is_over:
            self._root.put(self._pending + job_id, b"")

    def recipe(self, job: Job) -> TrainingRecipe:
        """Return how a job is learned."""
        return TrainingRecipe.from_json(job.request.recipe)

    def _call_off(self, job: Job) -> None:
        if not job.status.is_final:
            call_off(job.request.job_id, store=self._store, queue=self._queue)
            self._root.delete(self._pending + job.request.job_id)

    def _known(self, name: str, url: str, backbone: Backbone) -> Job | None:
        """Return the job that learns, or has learned, just this."""
        recipe, fingerprint = backbone.recipe.to_json(), backbone.fingerprint
        for job in self.of(name):
            is_same = job.record.concept_url == url and job.request.recipe == recipe
            if is_same and job.record.identity.backbone_fingerprint == fingerprint:
                return job if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED) else None
        return None

    def _require_room(self, name: str, *, limits: TenantLimits) -> None:
        unfinished = self._unfinished()
        # What is being learned will be a concept.
        names = {*self._repository.names(), *(job.request.name for job in unfinished)}
        if name not in names and len(names) >= limits.max_concepts:
            raise QuotaError(
                f"expected at most {limits.max_concepts} concepts, found {len(names)} learned or being learned already; "
                "delete one first"
            )
        if len(unfinished) >= limits.max_jobs:
            raise QuotaError(
                f"expected at most {limits.max_jobs} unfinished jobs, found {len(unfinished)}; wait for one"
            )
        if sum(1 for _ in self._store.list(NEWEST, limit=MAX_JOBS_KEPT)) >= MAX_JOBS_KEPT:
            raise QuotaError(
                f"expected at most {MAX_JOBS_KEPT} jobs, finished ones included, found as many; delete a concept, its "
                "jobs go with it"
            )

    def _unfinished(self) -> list[Job]:
        ids = [key.removeprefix(self._pending) for key in self._root.list(self._pending)]
        found = []
        for job_id in ids:
            job = self._read(job_id)
            if job is None or job.is_over:
                # Where no trainer of ours strikes it off.
                self.strike(job_id)
            elif not job.status.is_final:
                found.append(job)
        return found

    def _read_all(self, newest: list[str]) -> list[Job]:
        ids = [found[1] for key in newest if (found := _NEWEST_NAME.fullmatch(key))]
        return [job for job_id in ids if (job := self._read(job_id)) is not None]

    def _read(self, job_id: str) -> Job | None:
        try:
            request = TuningRequest.decode(self._store.get(_key(job_id)).data)
            return Job(request=request, record=self._queue.get(job_id))
        except NotFoundError:
            return None
        except UnreadableRecordError:
            return _unreadable(request, created_at_s=self._created_at_s(job_id))

    def _created_at_s(self, job_id: str) -> float:
        """Return when a job was asked for, as its place in the list of all jobs tells; 0 without one."""
        for key in self._store.list(NEWEST):
            if (found := _NEWEST_NAME.fullmatch(key)) and found[1] == job_id:
                # The middle of its millisecond, so that `_newest` comes to the same place.
                return (_FAR_MS - int(key.removeprefix(NEWEST).partition("-")[0]) + 0.5) / 1000
        return 0.0


def _key(job_id: str) -> str:
    return f"{PREFIX}{job_id}.json"


def _newest(job: Job) -> str:
    left_ms = _FAR_MS - int(job.record.created_at_s * 1000)
    return f"{NEWEST}{left_ms:013d}-{job.request.job_id}-{job.request.name}"


def _unreadable(request: TuningRequest, *, created_at_s: float) -> Job:
    """Return how a job looks while its record cannot be read: failed, because a client waits for each until it is over."""
    record = JobRecord(
        name=request.name,
        concept_url="",
        identity=JobIdentity(spec_digest="", recipe_digest="", backbone_fingerprint=""),
        num_steps=TrainingRecipe.from_json(request.recipe).steps,
        state=JobState.FAILED,
        created_at_s=created_at_s,
        updated_at_s=created_at_s,
    )
    return Job(request=request, record=record, is_unreadable=True)


def _missing(public_id: str) -> MissingError:
    return MissingError(f"expected a fine-tuning job, found none with the id {public_id[:64]!r}", field="id")
