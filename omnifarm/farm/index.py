"""The queue's index: empty objects whose keys say where to look, so that finding work costs the same at any length.

    ready/<pool>/<9 - priority>/<submission's digest>/<job id>.<placement>     queued, and may be leased now
    later/<pool>/<job id>.<placement>                                 held by a worker, or resting: look now and then
    failed/<pool>/<job id>.<placement>                                given up
    cancelled/<pool>/<job id>.<placement>                             called off

Records are the truth, entries are hints to it. A placement is random and new for every stay of a job in a place, so a
late deletion never meets a later stay, and one rule keeps every unfinished job findable through any crash: write the
entry of the newest placement seen, then delete another one, never the other way round. Whoever meets an entry that its
record has left behind finishes that move (`JobRecords.mend`).
"""

import hashlib
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from omnifarm.farm.job import JobRecord, JobState
from omnifarm.store.base import Store

READY, LATER, FAILED, CANCELLED = "ready/", "later/", "failed/", "cancelled/"
KINDS = (READY, LATER, FAILED, CANCELLED)
"""Every kind of entry."""
_MAX_SUBMISSIONS = 16
_JOB_ID_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """A hint: there is, or was, something to do for this job."""

    key: str
    """Its key, without the queue's prefix."""

    @property
    def job_id(self) -> str:
        """The job."""
        return self.key.rpartition("/")[2].partition(".")[0]


def folder_of(record: JobRecord) -> str | None:
    """Return where a job is to be filed, None for committed jobs."""
    if record.state is JobState.QUEUED and record.not_before_s == 0.0:
        # Folders of one width sort alike in every store.
        submission = hashlib.sha256(record.submission.encode()).hexdigest()[:12]
        return f"{READY}{record.identity.pool}/{9 - record.priority}/{submission}/"
    if not record.state.is_finished:
        return f"{LATER}{record.identity.pool}/"
    kind = {JobState.FAILED: FAILED, JobState.CANCELLED: CANCELLED}.get(record.state)
    return None if kind is None else f"{kind}{record.identity.pool}/"


def entry_of(record: JobRecord) -> Entry | None:
    """Return the entry under which a job is filed, if any."""
    folder = folder_of(record)
    return None if folder is None else Entry(f"{folder}{record.job_id}.{record.placement}")


class JobIndex:
    """Reads and writes entries. Holds no state; safe to share.

    Args:
        store: Where they lie.
        prefix: Put before every key.
        chance: Where to look first, so that workers seldom meet.
    """

    def __init__(self, store: Store, *, prefix: str, chance: random.Random) -> None:
        self._store = store
        self._prefix = prefix
        self._chance = chance

    def write(self, entry: Entry) -> None:
        """Write an entry; safe to repeat."""
        self._store.put(self._prefix + entry.key, b"")

    def delete(self, entry: Entry) -> None:
        """Delete an entry; safe to repeat."""
        self._store.delete(self._prefix + entry.key)

    def urgent_submissions(self, pool: str) -> list[str]:
        """Return the folders of submissions with ready jobs of the highest priority there is, at most 16 of them.

        One request per submission and one more; of more than sixteen, those behind a random point, for twice as many.
        """
        folder = f"{READY}{pool}/"
        found = self._submissions(folder, after="")
        if len(found) < _MAX_SUBMISSIONS:
            return found
        # Always the first sixteen would be served before any other.
        point = f"{self._chance.getrandbits(4 * _JOB_ID_DIGITS):0{_JOB_ID_DIGITS}x}"
        behind = self._submissions(folder, after=found[0].removesuffix("/").rpartition("/")[0] + "/" + point)
        return [*behind, *(one for one in found if one not in behind)][:_MAX_SUBMISSIONS]

    def _submissions(self, folder: str, *, after: str) -> list[str]:
        """Return up to 16 folders of submissions of one priority: each listing asks for one key behind the last found."""
        found = list[str]()
        priority = after.split("/")[2] if after else ""
        while len(found) < _MAX_SUBMISSIONS:
            key = next(iter(self._list(folder, after=after, limit=1)), None)
            if key is None:
                break
            submission = key.rpartition("/")[0] + "/"
            priority = priority or submission.split("/")[2]
            if submission.split("/")[2] != priority:
                break
            found.append(submission)
            # "0" is the character behind "/": everything of this submission is passed over.
            after = submission[:-1] + "0"
        return found

    def window(self, folder: str, *, size: int) -> list[Entry]:
        """Return up to `size` neighbouring entries of a folder, beginning at a random one; one or two requests."""
        start = folder + f"{self._chance.getrandbits(4 * _JOB_ID_DIGITS):0{_JOB_ID_DIGITS}x}"
        keys = list(self._list(folder, after=start, limit=size))
        if len(keys) < size:
            keys += [key for key in self._list(folder, limit=size - len(keys)) if key <= start]
        return [Entry(key) for key in keys]

    def entries(self, kind: str, *, pool: str | None = None) -> Iterator[Entry]:
        """Yield every entry of a kind, one request per thousand.

        Args:
            kind: One of KINDS.
            pool: Only those of this pool.
        """
        return (Entry(key) for key in self._list(kind if pool is None else f"{kind}{pool}/"))

    def count_up_to(self, most: int, kind: str, *, pool: str) -> int:
        """Return how many entries of a kind a pool has, or `most` if there are more."""
        return sum(1 for _ in self._list(f"{kind}{pool}/", limit=most))

    def is_empty(self, pool: str, *, but: Collection[str] = ()) -> bool:
        """Whether no job of a pool, but those of these ids, is ready, held or resting; two requests, small without any."""
        limit = None if but else 1
        keys = (key for kind in (READY, LATER) for key in self._list(f"{kind}{pool}/", limit=limit))
        return all(Entry(key).job_id in but for key in keys)

    def _list(self, folder: str, *, after: str = "", limit: int | None = None) -> Iterator[str]:
        start = self._prefix + after if after else ""
        for key in self._store.list(self._prefix + folder, after=start, limit=limit):
            yield key[len(self._prefix) :]
