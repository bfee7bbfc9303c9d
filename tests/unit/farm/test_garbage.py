"""What gc must not take: it runs beside workers, and each of their writes may fall between any two of its requests."""

from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement

import torch

from omnifarm.clock import ManualClock
from omnifarm.concept.artifact import ArtifactManifest, encode_manifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.repository import MANIFEST_FILE, ConceptRepository, tensors_file
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.farm.cells import worker_name
from omnifarm.farm.control import FarmControl, Order
from omnifarm.farm.garbage import collect_garbage
from omnifarm.farm.job import JobIdentity, JobRecord
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.sharing import Demand, DriverRegistry
from omnifarm.store.base import Object, ObjectInfo
from omnifarm.store.memory import MemoryStore

SOFT = SoftTokens(und=torch.ones(3, 4), gen=torch.ones(2, 4))
FINGERPRINT = "f" * 64


class Beside:
    """A view of a store in which somebody else acts just before the n-th request that is made through it."""

    def __init__(self, store: MemoryStore, acts: dict[int, list[Callable[[], object]]]) -> None:
        self._store, self._acts, self.count, self.url = store, acts, 0, store.url

    def _tick(self) -> MemoryStore:
        for act in self._acts.pop(self.count, []):
            act()
        self.count += 1
        return self._store

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        return self._tick().put(key, data, if_none_match=if_none_match, if_match=if_match)

    def get(self, key: str) -> Object:
        return self._tick().get(key)

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        yield from list(self._tick().list(prefix, after=after, limit=limit))

    def erase(self, key: str) -> None:
        self._tick().erase(key)

    def delete(self, key: str) -> None:
        self._tick().delete(key)

    def head(self, key: str) -> ObjectInfo:
        return self._tick().head(key)

    def erasable(self, prefix: str) -> Iterator[str]:
        return self.list(prefix)


class Commit:
    """A job in training on a store, and the three writes that commit it."""

    def __init__(self) -> None:
        self.store, self.clock = MemoryStore(), ManualClock()
        self.queue = JobQueue(self.store, clock=self.clock)
        identity = JobIdentity(spec_digest="s", recipe_digest="r", backbone_fingerprint=FINGERPRINT)
        self.queue.submit(name="ada", concept_url="u", identity=identity, num_steps=9)
        self.held: JobRecord = self.queue.lease_next("w", pool=identity.pool, ttl_s=60)[0]
        data = encode_soft_tokens(SOFT)
        manifest = ArtifactManifest(
            name="ada", version=identity.job_id, class_noun="dog", fingerprint=FINGERPRINT, data_digest="d" * 64,
            tensors_digest=tensors_digest(data), num_und=2, num_gen=2, width=4, created_at_s=1.0,
        )  # fmt: skip
        folder = f"artifacts/ada/{identity.job_id}/"
        self.writes: list[Callable[[], object]] = [
            lambda: self.store.put(folder + tensors_file(manifest.tensors_digest), data),
            lambda: self.store.put(folder + MANIFEST_FILE, encode_manifest(manifest)),
            lambda: self.queue.complete(self.held, artifact=folder),
        ]

    def collect(self, moments: tuple[int, int, int]) -> int:
        """Run gc with the writes before its requests of these numbers; return how many it made."""
        acts: dict[int, list[Callable[[], object]]] = {}
        for moment, write in zip(moments, self.writes, strict=True):
            acts.setdefault(moment, []).append(write)
        view = Beside(self.store, acts)
        collect_garbage(view, queue=JobQueue(view, clock=self.clock), dry_run=False)
        for late in acts.values():
            for write in late:
                write()
        return view.count


def test_a_commit_beside_gc_keeps_its_tensors_wherever_its_writes_fall() -> None:
    most = max(Commit().collect((0, moment, moment)) for moment in range(30))
    assert 8 < most < 29, "gc makes more requests than are tried here"
    for moments in combinations_with_replacement(range(most + 1), 3):
        commit = Commit()
        commit.collect(moments)
        _, soft_tokens = ConceptRepository(commit.store).load("ada", fingerprint=FINGERPRINT)
        assert torch.equal(soft_tokens.table(), SOFT.table()), moments


def test_an_order_to_a_cell_goes_when_neither_its_driver_nor_a_lease_of_the_cell_is_left() -> None:
    store, clock = MemoryStore(), ManualClock()
    queue, control = JobQueue(store, clock=clock), FarmControl(store)
    registry = DriverRegistry(store, clock=clock, ttl_s=60)
    identity = JobIdentity(spec_digest="s", recipe_digest="r", backbone_fingerprint=FINGERPRINT)
    queue.submit(name="ada", concept_url="u", identity=identity, num_steps=9)
    # Of a driver that is killed, which takes nothing back.
    registry.announce("driver-a", Demand(workers=8, priority=5))
    (held,) = queue.lease_next(worker_name("driver-a-1", 3), pool=identity.pool, ttl_s=600)
    for cell in ("driver-a-0", "driver-a-1"):
        control.order(Order.STOP, cell=cell)
    for order in (Order.STOP, Order.DRAIN):
        control.order(order)

    def collected(*, dry_run: bool = False) -> tuple[str, ...]:
        return collect_garbage(store, queue=queue, dry_run=dry_run).orders

    assert collected() == ()
    clock.advance_s(61)
    sound = store.get("drivers/driver-a.json").data
    store.put("drivers/driver-a.json", sound[:-5])
    assert collected() == (), "the driver may live: nobody can read when its demand runs out"
    store.put("drivers/driver-a.json", sound)
    registry.announce("driver-b", Demand(workers=8, priority=5))
    before = set(store.list())
    assert collected(dry_run=True) == ("control/stop-driver-a-0",)
    assert set(store.list()) == before
    assert collected() == ("control/stop-driver-a-0",)
    queue.release(held)
    assert collected() == ("control/stop-driver-a-1",)
    assert list(store.list("control/")) == ["control/drain", "control/stop"]
