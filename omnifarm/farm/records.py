"""Job records in a store: read whole, changed by compare-and-swap, and filed in the index as they change.

Knows how a record changes safely, not who may change what; that is `farm/queue.py`.
"""

import contextlib
import logging
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from omnifarm.clock import Clock
from omnifarm.errors import FarmError, NotFoundError, PreconditionError
from omnifarm.farm.index import Entry, JobIndex, entry_of, folder_of
from omnifarm.farm.job import SCHEMA_VERSION, JobRecord, JobState, UnreadableRecordError, check_move
from omnifarm.logs import event
from omnifarm.store.base import Store

RECORDS = "jobs/"
"""Keys of all job records begin with this."""
INDEX = "queue/"
"""Keys of all index entries begin with this."""

CHECKPOINTS = "checkpoints/"
"""Keys of all lane checkpoints begin with this."""

SUBMITTED = "submitted/"
"""Keys of what jobs learn from begin with this, see `farm/submitted.py`."""

_logger = logging.getLogger(__name__)

_MAX_SWAPS = 100
_MAX_REMEMBERED = 10_000
_NUM_READERS = 16
# Spelled here because inside the class `list` is a method.
_Records = list[JobRecord]
_Ids = list[str]


class JobRecords:
    """The records of one store. Remembers the versions of held records that it wrote, to save reading them again.

    Args:
        store: Where they lie.
        clock: Stamps changes.
        chance: For placements, and for where to look in the index.
    """

    def __init__(self, store: Store, *, clock: Clock, chance: random.Random) -> None:
        self.store = store
        self.clock = clock
        self._chance = chance
        self.index = JobIndex(store, prefix=INDEX, chance=chance)
        self._versions: dict[str, tuple[int, str]] = {}
        self.unreadable: dict[str, str] = {}
        """Why records could not be read, by job id."""

    def read(self, job_id: str) -> tuple[JobRecord, str]:
        """Return a record and its etag.

        One that is damaged, of another job or of another release is logged once and noted in `unreadable`.

        Raises:
            NotFoundError: There is no such job.
            UnreadableRecordError: Its record cannot be read.
        """
        found = self.store.get(record_key(job_id))
        try:
            record = JobRecord.decode(found.data)
            if record.job_id != job_id:
                raise UnreadableRecordError(
                    f"expected the record of job {job_id}, found that of {record.job_id} ({record.name!r}): it was copied "
                    "there: delete the object",
                )
        except UnreadableRecordError as error:
            self._note_unreadable(job_id, str(error))
            raise
        self.unreadable.pop(job_id, None)
        return record, found.etag

    def read_one_of_many(self, job_id: str) -> tuple[JobRecord, str] | None:
        """Return what `read` does, or None for a record that cannot be read: it must stop no others.

        Raises:
            NotFoundError: There is no such job.
        """
        try:
            return self.read(job_id)
        except UnreadableRecordError:
            return None

    def list(self, job_ids: Iterable[str] | None = None) -> _Records:
        """Return the records of `job_ids` (default: all) that exist and can be read, by name, then id.

        Of those that cannot be read `unreadable` tells.
        """
        ids = list(dict.fromkeys(job_ids)) if job_ids is not None else self.ids()

        def read(job_id: str) -> JobRecord | None:
            with contextlib.suppress(NotFoundError):  # deleted since it was listed
                found = self.read_one_of_many(job_id)
                return None if found is None else found[0]
            return None

        with ThreadPoolExecutor(_NUM_READERS) as pool:
            found = [record for record in pool.map(read, ids) if record is not None]
        return sorted(found, key=lambda record: (record.name, record.job_id))

    def ids(self) -> _Ids:
        """Return the ids of all jobs; one request per thousand."""
        return [key[len(RECORDS) : -len(".json")] for key in self.store.list(RECORDS) if key.endswith(".json")]

    def create(self, record: JobRecord) -> JobRecord | None:
        """Write and file a new record, or return None when there is one under this id."""
        record = replace(record, placement=self._new_placement())
        try:
            self.store.put(record_key(record.job_id), record.encode(), if_none_match=True)
        except PreconditionError:
            return None
        self._file(None, record)
        return record

    def change(
        self, job_id: str, change: Callable[[JobRecord], JobRecord], *, known: JobRecord | None = None
    ) -> JobRecord:
        """Replace a record by what `change` makes of it, whoever else writes meanwhile.

        Args:
            job_id: The job.
            change: Called once per try with the present record; what it raises goes through. Returning the record
                itself changes nothing, but makes sure that it is filed.
            known: The caller's copy; saves a request while nobody else has written.

        Returns:
            The record as it is now.
        """
        for number in range(_MAX_SWAPS):
            version = self._versions.get(job_id)
            if number == 0 and known is not None and version is not None and version[0] == known.revision:
                record, etag = known, version[1]
            else:
                record, etag = self.read(job_id)
            after = change(record)
            if after == record:
                self._file(None, record)
                return record
            written = self.swap(record, after, etag)
            if written is not None:
                return written
        raise FarmError(
            f"job {job_id} changed {_MAX_SWAPS} times while it was being written: does the store honour If-Match?",
            job_id=job_id,
        )

    def swap(self, before: JobRecord, after: JobRecord, etag: str) -> JobRecord | None:
        """Write `after` over exactly the version `before`, and file it; None if somebody else wrote first.

        Raises:
            FarmError: The table of moves does not allow it.
        """
        check_move(before, to=after.state)
        is_moved = folder_of(after) != folder_of(before)
        after = replace(
            after,
            revision=before.revision + 1,
            updated_at_s=self.clock.now_s(),
            placement=self._new_placement() if is_moved else before.placement,
        )
        try:
            etag = self.store.put(record_key(before.job_id), after.encode(), if_match=etag)
        except PreconditionError:
            self._versions.pop(before.job_id, None)
            return None
        if after.state.is_held and len(self._versions) < _MAX_REMEMBERED:
            self._versions[after.job_id] = (after.revision, etag)
        else:
            self._versions.pop(after.job_id, None)
        if is_moved:
            self._file(before, after)
        return after

    def forget(self, job_id: str) -> None:
        """Delete a finished job's record, so that the same work may be submitted anew. Safe to repeat.

        Raises:
            FarmError: The job is unfinished: somebody may hold it.
        """
        with contextlib.suppress(NotFoundError):
            record, _ = self.read(job_id)
            if not record.state.is_finished:
                raise FarmError(f"job {record.name!r} is {record.state.value}; cancel it before it is forgotten")
            self.store.delete(submitted_key(job_id))
            self.store.delete(record_key(job_id))
            entry = entry_of(record)
            if entry is not None:
                self.index.delete(entry)

    def mend(self, entry: Entry) -> bool:
        """Finish a move that was broken off: file the entry's job where it belongs, delete an entry that is elsewhere.

        Returns:
            Whether the entry was in the wrong place; of a record that cannot be read nobody knows, and it stays.
        """
        right: Entry | None = None
        with contextlib.suppress(NotFoundError):
            found = self.read_one_of_many(entry.job_id)
            if found is None:
                return False
            right = entry_of(found[0])
        if right == entry:
            return False
        if right is not None:
            self.index.write(right)
        self.index.delete(entry)
        return True

    def _file(self, before: JobRecord | None, after: JobRecord) -> None:
        """Write the entry of `after`, then delete that of `before`; in this order a crash leaves one at least."""
        entry = entry_of(after)
        if entry is not None:
            self.index.write(entry)
        old = None if before is None else entry_of(before)
        if old is not None:
            self.index.delete(old)

    def _note_unreadable(self, job_id: str, reason: str) -> None:
        if job_id not in self.unreadable:
            event(
                _logger,
                "job_record_unreadable",
                level=logging.ERROR,
                key=record_key(job_id),
                expected=f"a job record of schema {SCHEMA_VERSION}",
                found=reason,
                todo="use the release that wrote it, or delete the object and submit its concept again",
            )
        self.unreadable[job_id] = reason

    def _new_placement(self) -> str:
        return f"{self._chance.getrandbits(32):08x}"


def as_unreadable(record: JobRecord, *, reason: str) -> JobRecord:
    """Return a job as it counts for who asked for it while its record cannot be read: failed. It is never written.

    Args:
        record: The job as it was submitted.
        reason: See `JobRecords.unreadable`.
    """
    key = record_key(record.job_id)
    error = f"concept {record.name!r} cannot be learned: its job record {key} cannot be read: {reason}"
    return replace(record, state=JobState.FAILED, lease=None, artifact=None, error=error)


def record_key(job_id: str) -> str:
    """Return where a job's record lies."""
    return f"{RECORDS}{job_id}.json"


def submitted_key(job_id: str) -> str:
    """Return where the concept that a job learns is described; there as long as its record."""
    return f"{SUBMITTED}{job_id}.json"


def checkpoint_key(job_id: str) -> str:
    """Return where a job's lane is saved while it is trained."""
    return f"{CHECKPOINTS}{job_id}.safetensors"
