"""Forgetting a concept: a person's face is personal data, so deletion leaves nothing behind.

What goes: every version's artifact, checkpoints and loss curves, prepared pictures, what was submitted, job records and
index entries, and on a bucket that keeps versions every older version of each, also of what was deleted before. What the owner keeps are the photographs themselves.
"""

from dataclasses import asdict, dataclass
from typing import get_args

from omnifarm.concept.prepared import prepared_folder
from omnifarm.concept.recipe import Precision
from omnifarm.concept.repository import PREFIX as ARTIFACTS
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import NotFoundError
from omnifarm.farm.index import entry_of
from omnifarm.farm.job import JobRecord, JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import CHECKPOINTS, INDEX, record_key, submitted_key
from omnifarm.store.base import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class ErasureReport:
    """What was deleted."""

    versions: int
    """Committed versions."""
    jobs: int
    """Job records."""
    objects: int
    """Objects in all."""

    def to_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


def erase_concept(name: str, *, store: Store, queue: JobQueue) -> ErasureReport:
    """Delete everything a farm knows of a concept. Safe to repeat; reads every job record.

    Jobs under way are cancelled first; their workers let go at the next heartbeat and then erase by themselves what
    they wrote meanwhile (`erase_if_called_off`). Only of a worker that dies before it, something is left to a repetition.

    Args:
        name: Without angle brackets.
        store: The farm's store.
        queue: Its queue.
    """
    versions = len(ConceptRepository(store).versions(name))
    # As they are then: cancelling files a job elsewhere.
    records = [queue.cancel(record.job_id) for record in queue.list() if record.name == name]
    prefixes = [f"{ARTIFACTS}{name}/"]
    prefixes += [prefix for record in records for prefix in _traces(record)]
    prefixes += [submitted_key(record.job_id) for record in records]
    keys = [key for prefix in dict.fromkeys(prefixes) for key in store.erasable(prefix)]
    keys += [INDEX + entry.key for record in records if (entry := entry_of(record)) is not None]
    # Records last: as long as one is there, a repetition knows what to delete.
    keys += [record_key(record.job_id) for record in records]
    for key in keys:
        store.erase(key)
    return ErasureReport(versions=versions, jobs=len(records), objects=len(set(keys)))


def erase_if_called_off(record: JobRecord, *, store: Store, queue: JobQueue, is_written: bool = False) -> None:
    """Erase what a worker wrote of a job that a person cancelled or deleted meanwhile. Safe to repeat.

    Whoever deletes a concept cannot see what is written a moment later, so this is left to the one who writes.

    Args:
        record: The job as the worker knew it.
        store: The farm's store.
        queue: Its queue.
        is_written: Whether the worker may have written the artifact. One that was there before outlives a cancelled
            job, and nothing outlives a deleted one.
    """
    try:
        if queue.get(record.job_id).state is not JobState.CANCELLED:
            return
    except NotFoundError:
        is_written = True
    if is_written:
        ConceptRepository(store).delete(record.name, version=record.job_id)
    for key in [key for prefix in _traces(record) for key in store.erasable(prefix)]:
        store.erase(key)


def _traces(record: JobRecord) -> list[str]:
    folders = [prepared_folder(record.identity.backbone_fingerprint, dtype=name) for name in get_args(Precision)]
    return [f"{CHECKPOINTS}{record.job_id}.", *(folder + digest for folder in folders for digest in record.pictures)]
