"""What a farm leaves lying about, and its removal: broken-off moves, old checkpoints, what nobody names, orders to the dead.

Also mends what only a crash in the middle of an order can leave: an unfinished job without an index entry.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from omnifarm.clock import Clock
from omnifarm.concept.artifact import decode_manifest
from omnifarm.concept.prepared import PREFIX as PREPARED
from omnifarm.concept.prepared import prepared_folder
from omnifarm.concept.recipe import Precision
from omnifarm.concept.repository import MANIFEST_FILE, TENSORS_FILE, tensors_file
from omnifarm.concept.repository import PREFIX as ARTIFACTS
from omnifarm.errors import ArtifactError, FarmError, NotFoundError
from omnifarm.farm.cells import cell_of, driver_of
from omnifarm.farm.control import FarmControl
from omnifarm.farm.index import KINDS, entry_of
from omnifarm.farm.job import JobRecord, JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import CHECKPOINTS, SUBMITTED
from omnifarm.farm.sharing import DriverRegistry
from omnifarm.store.base import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class GarbageReport:
    """What was found, and removed or mended unless it was a dry run."""

    mended: tuple[str, ...]
    """Jobs that were filed anew."""
    entries: tuple[str, ...]
    """Index entries in the wrong place."""
    checkpoints: tuple[str, ...]
    """Checkpoints of jobs that are finished or gone."""
    tensors: tuple[str, ...]
    """Soft tokens that no manifest names, of jobs that are finished or gone."""
    submitted: tuple[str, ...]
    """What was to be learned by jobs that are gone."""
    prepared: tuple[str, ...]
    """Prepared pictures that no job trains on, but such as were called off."""
    orders: tuple[str, ...]
    """Orders to stop, of cells that have ended with their driver."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {name: list(getattr(self, name)) for name in self.__slots__}


def collect_garbage(store: Store, *, queue: JobQueue, dry_run: bool) -> GarbageReport:
    """Remove what nothing refers to. Safe beside running workers, and safe to repeat.

    Reads every record: a task for a quiet hour, not for a loop.

    Args:
        store: The farm's store.
        queue: Its queue.
        dry_run: Only say what would be done.

    Raises:
        FarmError: A record cannot be read, so nobody knows what belongs to its job; nothing was erased.
    """
    # Listed before the records are read: what a worker writes meanwhile is not touched.
    entries = [entry for kind in KINDS for entry in queue.index.entries(kind)]
    checkpoints = list(store.list(CHECKPOINTS))
    artifacts = list(store.list(ARTIFACTS))
    submitted = list(store.list(SUBMITTED))
    prepared = list(store.list(PREPARED))
    stops = FarmControl(store).cell_stops()
    records = {record.job_id: record for record in queue.list()}
    if unreadable := queue.records.unreadable:
        raise FarmError(
            f"expected job records that can be read, found {len(unreadable)} that cannot, such as {min(unreadable)}; nothing was "
            "erased, because something may belong to them: use the release that wrote them, or delete these records"
        )
    wrong = [entry for entry in entries if _entry(records.get(entry.job_id)) != entry.key]
    filed = {entry.key for entry in entries}
    unfiled = [job_id for job_id, record in records.items() if (_entry(record) or "") not in filed | {""}]
    old = [key for key in checkpoints if _is_over(records, key.removeprefix(CHECKPOINTS).partition(".")[0])]
    forgotten = [key for key in submitted if not _exists(queue, key.removeprefix(SUBMITTED).partition(".")[0], records)]
    unlisted = _unlisted(prepared, records.values())
    orders = _ended(stops, records.values(), store=store, clock=queue.records.clock)
    suspects = [key for key in _unnamed(store, artifacts) if _is_over(records, key.split("/")[2])]
    if not dry_run:
        for job_id in unfiled:
            queue.records.change(job_id, lambda record: record)
        for entry in wrong:
            queue.records.mend(entry)
        for key in [*old, *forgotten, *unlisted, *orders]:
            store.erase(key)
    orphans = []
    for key in suspects:
        # Looked at again at the last moment: since the listing, the job may have written its manifest and be committed.
        if _is_orphan(key, store=store, queue=queue):
            orphans.append(key)
            if not dry_run:
                store.erase(key)
    return GarbageReport(
        mended=tuple(unfiled),
        entries=tuple(entry.key for entry in wrong),
        checkpoints=tuple(old),
        tensors=tuple(orphans),
        submitted=tuple(forgotten),
        prepared=tuple(unlisted),
        orders=tuple(orders),
    )


def _entry(record: JobRecord | None) -> str | None:
    entry = None if record is None else entry_of(record)
    return None if entry is None else entry.key


def _exists(queue: JobQueue, job_id: str, records: dict[str, JobRecord]) -> bool:
    # Asked again: a submission writes what is to be learned a moment before its record.
    return job_id in records or bool(queue.list([job_id]))


def _is_over(records: dict[str, JobRecord], job_id: str) -> bool:
    return job_id not in records or records[job_id].state.is_finished


def _unlisted(prepared: list[str], records: Iterable[JobRecord]) -> list[str]:
    """Return the keys of prepared pictures that no record lists for their backbone. One still in use is prepared again."""
    listed: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.state is not JobState.CANCELLED:
            for dtype in get_args(Precision):
                listed[prepared_folder(record.identity.backbone_fingerprint, dtype=dtype)].update(record.pictures)
    parts = [(key, *key.rpartition("/")) for key in prepared]
    return [key for key, folder, slash, name in parts if name[:16] not in listed[folder + slash]]


def _ended(stops: Mapping[str, str], records: Iterable[JobRecord], *, store: Store, clock: Clock) -> list[str]:
    """Return the keys of orders, listed before, that no worker is left to obey.

    A cell's workers end with the driver that told them to stop. It says what it wants before it does, and again at every
    look, so one without a demand is gone, as all drivers take it. Where that misleads, leases tell of the cell: drivers of a
    draining farm want nothing, and a worker may be cut off from a dead one. One whose demand cannot be read may live.
    """
    if not stops:
        return []
    registry = DriverRegistry(store, clock=clock)
    drivers = registry.present(tidy=False).keys() | registry.unreadable
    working = {cell_of(record.lease.worker) for record in records if record.lease is not None}
    return [key for cell, key in stops.items() if driver_of(cell) not in drivers and cell not in working]


def _is_orphan(key: str, *, store: Store, queue: JobQueue) -> bool:
    """Return whether tensors belong to no artifact, and nobody is about to write its manifest."""
    job_id = key.split("/")[2]
    # The record before the manifest: a job that is over by now has written its manifest by now, or never will.
    if not _is_over({record.job_id: record for record in queue.list([job_id])}, job_id):
        return False
    manifest = key.rpartition("/")[0] + f"/{MANIFEST_FILE}"
    try:
        return not key.endswith(
            "/" + tensors_file(decode_manifest(store.get(manifest).data, where=manifest).tensors_digest)
        )
    except NotFoundError:
        return True
    except ArtifactError:
        return False  # a manifest that cannot be read may name them


def _unnamed(store: Store, keys: list[str]) -> list[str]:
    """Return the keys of tensors that their version's manifest does not name."""
    named = set()
    for key in keys:
        if key.endswith(f"/{MANIFEST_FILE}"):
            try:
                manifest = decode_manifest(store.get(key).data, where=key)
                named.add(key.removesuffix(MANIFEST_FILE) + tensors_file(manifest.tensors_digest))
            except (ArtifactError, NotFoundError):
                named |= {other for other in keys if other.rpartition("/")[0] == key.rpartition("/")[0]}
    stem = TENSORS_FILE.partition(".")[0]
    return [key for key in keys if key not in named and key.rpartition("/")[2].startswith(stem)]
