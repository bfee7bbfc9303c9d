"""Forgetting a concept: a person's face is personal data, so deletion leaves nothing behind.

What goes: every version's artifact, checkpoints and loss curves, prepared pictures, job records and index entries, and
on a bucket that keeps versions every older version of each. What the owner keeps are the photographs themselves.
"""

import contextlib
from dataclasses import asdict, dataclass

from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.prepared import PREFIX as PREPARED
from omnifarm.concept.repository import PREFIX as ARTIFACTS
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, OmniFarmError
from omnifarm.farm.index import entry_of
from omnifarm.farm.job import JobRecord
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import CHECKPOINTS, INDEX, record_key
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
    untraced: tuple[str, ...]
    """Places whose photographs could not be read, so that pictures prepared from them may be left under `prepared/`."""

    def to_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return {**asdict(self), "untraced": list(self.untraced)}


def erase_concept(name: str, *, store: Store, queue: JobQueue) -> ErasureReport:
    """Delete everything a farm knows of a concept. Safe to repeat; reads every job record.

    Jobs under way are cancelled first; their workers let go at the next heartbeat and write nothing afterwards that is
    not deleted by a repetition.

    Args:
        name: Without angle brackets.
        store: The farm's store.
        queue: Its queue.
    """
    versions = len(ConceptRepository(store).versions(name))
    records = [record for record in queue.list() if record.name == name]
    for record in records:
        queue.cancel(record.job_id)
    digests, untraced = _photographs(name, records)
    keys = [*store.list(f"{ARTIFACTS}{name}/")]
    keys += [key for record in records for key in store.list(f"{CHECKPOINTS}{record.job_id}.")]
    if digests:
        keys += [key for key in store.list(PREPARED) if any(digest in key for digest in digests)]
    for record in records:
        entry = entry_of(record)
        keys += [] if entry is None else [INDEX + entry.key]
    # Records last: as long as one is there, a repetition knows what to delete.
    keys += [record_key(record.job_id) for record in records]
    for key in dict.fromkeys(keys):
        store.erase(key)
    return ErasureReport(versions=versions, jobs=len(records), objects=len(set(keys)), untraced=untraced)


def _photographs(name: str, records: list[JobRecord]) -> tuple[set[str], tuple[str, ...]]:
    """Return the digests of the concept's photographs, as far as they can still be read where they were."""
    digests: set[str] = set()
    untraced = []
    for url in sorted({record.concept_url for record in records}):
        spec: ConceptSpec | ConceptError | None = None
        with contextlib.suppress(OmniFarmError):
            spec = dict(load_concepts(url)).get(name)
        if isinstance(spec, ConceptSpec):
            digests |= {image.digest for image in spec.images}
        else:
            untraced.append(url)
    return digests, tuple(untraced)
