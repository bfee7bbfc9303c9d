"""Forgetting a concept: a person's face is personal data, so deletion leaves nothing behind.

What goes: every version's artifact, checkpoints and loss curves, prepared pictures, what was submitted, job records and
index entries, and on a bucket that keeps versions every older version of each, also of what was deleted before. What the owner
keeps are the photographs themselves.

Prepared pictures go whoever else trains on them, because a photograph of the deleted may be another concept's negative:
a training that misses one prepares it again, under a record that lists it.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import get_args

from omnifarm.concept.prepared import prepared_folder
from omnifarm.concept.recipe import Precision
from omnifarm.concept.repository import PREFIX as ARTIFACTS
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import NotFoundError
from omnifarm.farm.index import entry_of
from omnifarm.farm.job import JobRecord, JobState, UnreadableRecordError
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import CHECKPOINTS, INDEX, record_key, submitted_key
from omnifarm.store.base import Store

_NUM_READERS = 16


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
    everybodys = queue.list()
    records = [queue.cancel(record.job_id) for record in everybodys if record.name == name]
    # Of every backbone: where the concept was never learned, others may have borrowed its photographs.
    fingerprints = {record.identity.backbone_fingerprint for record in everybodys}
    prefixes = [f"{ARTIFACTS}{name}/"]
    prefixes += [prefix for record in records for prefix in _traces(record, fingerprints=fingerprints)]
    prefixes += [submitted_key(record.job_id) for record in records]
    keys = _erasable(store, prefixes)
    keys += [INDEX + entry.key for record in records if (entry := entry_of(record)) is not None]
    # Records last: as long as one is there, a repetition knows what to delete.
    keys += [record_key(record.job_id) for record in records]
    for key in keys:
        store.erase(key)
    return ErasureReport(versions=versions, jobs=len(records), objects=len(set(keys)))


def call_off(job_id: str, *, store: Store, queue: JobQueue) -> JobRecord:
    """Cancel an unfinished job and erase its checkpoint, so that a retry begins anew. Safe to repeat.

    What its worker writes until it lets go, the worker erases (`erase_if_called_off`); a job that nobody holds has no
    worker that could. Pictures prepared for it are left to gc, because most of them are other concepts' as well.

    Returns:
        The record as it is now; a job that was finished before is left as it was.
    """
    record = queue.cancel(job_id)
    if record.state is JobState.CANCELLED:
        for key in list(store.erasable(_saved(record))):
            store.erase(key)
    return record


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
    except UnreadableRecordError:
        return  # it may have been called off or not; what was kept of it is found when a person has mended the record
    except NotFoundError:
        is_written = True
    if is_written:
        ConceptRepository(store).delete(record.name, version=record.job_id)
    for key in _erasable(store, _traces(record, fingerprints=[record.identity.backbone_fingerprint])):
        store.erase(key)


def _traces(record: JobRecord, *, fingerprints: Iterable[str]) -> list[str]:
    folders = [prepared_folder(one, dtype=dtype) for one in fingerprints for dtype in get_args(Precision)]
    return [_saved(record), *(folder + digest for folder in folders for digest in record.pictures)]


def _saved(record: JobRecord) -> str:
    return f"{CHECKPOINTS}{record.job_id}."


def _erasable(store: Store, prefixes: Iterable[str]) -> list[str]:
    # Many at a time: a concept may list a hundred borrowed pictures, each a request per backbone and type.
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        found = pool.map(lambda prefix: list(store.erasable(prefix)), dict.fromkeys(prefixes))
        return [key for keys in found for key in keys]
