"""Fine-tuning jobs of a tenant and the copies they learn from, over a store in a folder."""

import io
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnifarm.clock import ManualClock
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError
from omnifarm.farm.records import record_key
from omnifarm.farm.submission import inspect_backbone
from omnifarm.store.base import Store
from omnifarm.store.open import open_store
from omnifarm.tenancy import TenantLimits
from serve.bodies import checked
from serve.copies import copied_bytes
from serve.documents import ConceptDocument
from serve.errors import QuotaError
from serve.shelf import Shelf
from serve.tuning import Job, JobStatus, Tuning
from serve.wire.learning import JobObject, events_of
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE

LIMITS = TenantLimits()


class WatchedShelf(Shelf):
    """Notes how much memory is held when the next file is asked for."""

    most_held = 0

    def content(self, file_id: str) -> bytes:
        self.most_held = max(self.most_held, tracemalloc.get_traced_memory()[0])
        return super().content(file_id)


class Tenant:
    """One tenant's store with the services over it."""

    def __init__(self, folder: Path) -> None:
        clock = self.clock = ManualClock()
        self.store: Store = open_store(str(folder / "tenant"))
        self.root: Store = open_store(str(folder / "root"))
        self.shelf = WatchedShelf(self.store, clock=clock)
        backbone = inspect_backbone(str(CHECKPOINT), overrides=RECIPE)
        self.tuning = Tuning("acme", root=self.root, store=self.store, shelf=self.shelf, backbone=backbone, clock=clock)

    def upload(self, seed: int, *, side: int = 32, limits: TenantLimits = LIMITS) -> str:
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        data = buffer.getvalue()
        return self.shelf.add(data, filename="a", purpose="vision", media_type="image/png", limits=limits).file_id

    def ask(self, photos: list[str], *, name: str = "rex", limits: TenantLimits = LIMITS, **more: Any) -> Job:
        document = checked(ConceptDocument, {"class": "dog", "photos": photos, **more.pop("document", {})})
        return self.tuning.create(
            document, name=name, training_file="file-0", overrides=more, metadata={}, limits=limits
        )

    def copies(self) -> set[str]:
        return {key.rsplit("/", 2 if "/images/" in key else 1)[0] for key in self.store.list("concepts/")}

    def file_bytes(self) -> int:
        return sum(file.size_bytes for file in self.shelf.list())


@pytest.fixture
def tenant(tmp_path: Path) -> Tenant:
    return Tenant(tmp_path)


def test_a_copy_tells_its_size_and_can_be_learned_from_when_the_uploads_are_gone(tenant: Tenant) -> None:
    photos = [tenant.upload(seed) for seed in range(2)]
    job = tenant.ask(photos)
    keys = list(tenant.store.list("concepts/"))
    assert copied_bytes(tenant.store) == sum(tenant.store.head(key).size_bytes for key in keys)
    for file_id in photos:
        tenant.shelf.delete(file_id)
    ((_, spec),) = load_concepts(job.record.concept_url)
    assert isinstance(spec, ConceptSpec)
    assert len(spec.images) == 2


def test_pictures_are_copied_one_at_a_time(tenant: Tenant) -> None:
    photos = [tenant.upload(seed, side=256) for seed in range(12)]
    tenant.ask(photos, name="warm")
    tracemalloc.start()
    try:
        tenant.ask(photos)
    finally:
        tracemalloc.stop()
    assert 0 < tenant.shelf.most_held < tenant.file_bytes() / 4


def test_a_cancelled_job_leaves_no_copies_and_may_be_asked_for_again(tenant: Tenant) -> None:
    photos = [tenant.upload(seed) for seed in range(2)]
    for name in ("a", "b", "c"):
        tenant.tuning.cancel(tenant.ask(photos, name=name).public_id)
        assert tenant.copies() == set()
    again = tenant.ask(photos, name="a")
    assert again.status is JobStatus.QUEUED
    assert isinstance(load_concepts(again.record.concept_url)[0][1], ConceptSpec)


def test_a_copy_stays_while_another_job_learns_from_it(tenant: Tenant) -> None:
    photos = [tenant.upload(1)]
    first, second = tenant.ask(photos), tenant.ask(photos, seed=7)
    assert first.record.concept_url == second.record.concept_url
    tenant.tuning.cancel(first.public_id)
    assert len(tenant.copies()) == 1
    tenant.tuning.cancel(second.public_id)
    assert tenant.copies() == set()


def test_an_owners_own_photographs_are_not_taken_for_a_copy(tenant: Tenant, tmp_path: Path) -> None:
    job = tenant.ask([tenant.upload(1)])
    tenant.store.put("concepts/rex/images/mine.png", b"mine")
    url = f"{tenant.store.url}/concepts/rex"
    tenant.tuning._queue.records.change(job.request.job_id, lambda record: replace(record, concept_url=url))
    tenant.tuning.cancel(job.public_id)
    assert tenant.store.get("concepts/rex/images/mine.png").data == b"mine"


def test_copies_count_against_the_bytes_a_tenant_may_have(tenant: Tenant) -> None:
    photos = [tenant.upload(seed) for seed in range(2)]
    one_copy = tenant.file_bytes() + 1000
    limits = TenantLimits(max_file_bytes=tenant.file_bytes() + one_copy)
    job = tenant.ask(photos, limits=limits)
    with pytest.raises(QuotaError, match="copies"):
        tenant.ask(photos, name="another", limits=limits)
    with pytest.raises(QuotaError, match="copies"):
        tenant.upload(9, limits=limits)
    # The same again takes no more room, and what is called off gives its room back.
    assert tenant.ask(photos, limits=limits).public_id == job.public_id
    tenant.tuning.cancel(job.public_id)
    assert tenant.ask(photos, name="another", limits=limits).status is JobStatus.QUEUED


def test_what_cannot_be_learned_from_leaves_no_copies(tenant: Tenant) -> None:
    twins = [tenant.upload(1), tenant.upload(1)]
    with pytest.raises(ConceptError):
        tenant.ask(twins, document={"negatives": [tenant.upload(1)]})
    assert tenant.copies() == set()


def test_a_tenant_is_not_told_where_the_store_is_nor_what_broke_inside(tenant: Tenant) -> None:
    job = tenant.ask([tenant.upload(1)])
    url = job.record.concept_url

    def told(**changes: str) -> str:
        return replace(job, record=replace(job.record, **changes)).reason  # type: ignore[arg-type]

    assert job.reason == ""
    assert told(error="concept 'rex': no photographs\nmore") == "concept 'rex': no photographs"
    assert (
        told(error=f"concept 'rex' is gone from {url}; submit") == "concept 'rex' is gone from the copied files; submit"
    )
    assert "secret" not in told(error="OSError: /srv/secret", traceback="Traceback ...")


def learn(tenant: Tenant, job: Job) -> None:
    """What a cell does that knows no list of work."""
    queue = tenant.tuning._queue
    (held,) = queue.lease_next("a cell", pool=job.record.identity.pool, ttl_s=60.0)
    queue.complete(held, artifact="artifacts/rex")


def test_asking_again_gives_the_same_job_also_when_no_other_may_be_asked_for(tenant: Tenant) -> None:
    limits = TenantLimits(max_jobs=1)
    photos = [tenant.upload(1)]
    job = tenant.ask(photos, limits=limits)
    assert tenant.ask(photos, limits=limits).public_id == job.public_id
    for other in ({"name": "another"}, {"seed": 7}):
        with pytest.raises(QuotaError, match="unfinished"):
            tenant.ask(photos, limits=limits, **other)
    # Nor does what is refused leave copies behind.
    assert tenant.copies() == {job.record.concept_url.removeprefix(f"{tenant.store.url}/")}


def test_a_job_that_a_cell_has_finished_makes_room_for_the_next(tenant: Tenant) -> None:
    limits = TenantLimits(max_jobs=1)
    photos = [tenant.upload(1)]
    learn(tenant, tenant.ask(photos, limits=limits))
    assert tenant.ask(photos, name="another", limits=limits).status is JobStatus.QUEUED
    assert len(list(tenant.root.list("pending/"))) == 1


def test_what_is_being_learned_counts_as_a_concept(tenant: Tenant) -> None:
    limits = TenantLimits(max_concepts=1)
    photos = [tenant.upload(1)]
    job = tenant.ask(photos, limits=limits)
    with pytest.raises(QuotaError, match="at most 1 concepts"):
        tenant.ask(photos, name="another", limits=limits)
    assert tenant.ask(photos, seed=7, limits=limits).request.name == "rex"
    for one in tenant.tuning.of("rex"):
        tenant.tuning.cancel(one.public_id)
    assert tenant.tuning.get(job.public_id).status is JobStatus.CANCELLED
    assert tenant.ask(photos, name="another", limits=limits).status is JobStatus.QUEUED


def test_finished_jobs_are_kept_up_to_a_number(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.tuning.MAX_JOBS_KEPT", 2)
    photos = [tenant.upload(1)]
    for name in ("a", "b"):
        tenant.tuning.cancel(tenant.ask(photos, name=name).public_id)
    with pytest.raises(QuotaError, match="finished ones included"):
        tenant.ask(photos, name="c")
    tenant.tuning.forget("a")
    assert tenant.ask(photos, name="c").status is JobStatus.QUEUED


def test_jobs_are_read_a_page_at_a_time_newest_first(tenant: Tenant) -> None:
    photos = [tenant.upload(1)]
    ids = []
    for name in ("a", "b", "c", "d", "e"):
        tenant.clock.advance_s(1)
        ids.insert(0, tenant.ask(photos, name=name).public_id)

    def page(limit: int, after: str | None = None) -> tuple[list[str], bool]:
        jobs, has_more = tenant.tuning.page(limit=limit, after=after)
        return [job.public_id for job in jobs], has_more

    assert page(2) == (ids[:2], True)
    assert page(2, ids[1]) == (ids[2:4], True)
    assert page(2, ids[3]) == (ids[4:], False)
    assert page(5) == (ids, False)
    # Asked for again, a job keeps its place; one that is forgotten has none.
    tenant.tuning.cancel(ids[4])
    tenant.ask(photos, name="a")
    assert page(5) == (ids, False)
    tenant.tuning.forget("c")
    assert page(5) == (ids[:2] + ids[3:], False)
    assert [job.request.name for job in tenant.tuning.of("b")] == ["b"]


def test_a_page_reads_its_own_jobs_alone(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [tenant.upload(1)]
    for number in range(6):
        tenant.clock.advance_s(1)
        tenant.ask(photos, name=f"c{number}", limits=replace(LIMITS, max_jobs=10))
    read: list[str] = []
    get = tenant.store.get
    monkeypatch.setattr(tenant.store, "get", lambda key: (read.append(key), get(key))[1])
    assert len(tenant.tuning.page(limit=2)[0]) == 2
    assert len([key for key in read if key.startswith("tuning/")]) == 2


def test_a_job_that_is_asked_for_again_stays_on_the_list_of_work(tenant: Tenant) -> None:
    photos = [tenant.upload(1)]
    job = tenant.ask(photos)
    tenant.tuning.strike(job.request.job_id)
    assert list(tenant.root.list("pending/")) == [f"pending/acme/{job.request.job_id}"]
    tenant.tuning.cancel(job.public_id)
    tenant.tuning.strike(job.request.job_id)
    assert list(tenant.root.list("pending/")) == []


def test_a_job_whose_record_cannot_be_read_is_shown_as_failed_and_stops_no_other(tenant: Tenant) -> None:
    photos = [tenant.upload(1)]
    jobs = []
    for name, seed in (("a", 0), ("rex", 0), ("rex", 7), ("z", 0)):
        tenant.clock.advance_s(1.001)
        jobs.insert(0, tenant.ask(photos, name=name, seed=seed))
    ids = [job.public_id for job in jobs]
    _, other, bad, _ = jobs
    key = record_key(bad.request.job_id)
    sound = tenant.store.get(key).data
    tenant.store.put(key, sound[:-20])

    def is_pending() -> bool:
        return f"pending/acme/{bad.request.job_id}" in tenant.root.list("pending/")

    listed, _ = tenant.tuning.page(limit=5)
    assert [job.public_id for job in listed] == ids
    assert [job.public_id for job in tenant.tuning.page(limit=5, after=bad.public_id)[0]] == ids[3:]
    told = JobObject.of(listed[2], tenant="acme")
    assert (told.status, told.created_at, told.progress.num_steps) == ("failed", int(bad.record.created_at_s), 6)
    assert told.error is not None
    assert told.error.message == "what the server kept of this job cannot be read; its operator can see why"
    assert events_of(listed[2])[-1].level == "error"
    # It is no longer waited for, and counts as none that is under way; when it is mended a trainer finds it again.
    tenant.clock.advance_s(1)
    assert tenant.ask(photos, name="more", limits=TenantLimits(max_jobs=4)).status is JobStatus.QUEUED
    tenant.tuning.strike(bad.request.job_id)
    assert is_pending()
    # Asked for again, it is the same one; nothing is written over it, and what it learns from stays.
    tenant.clock.advance_s(1)
    again = tenant.ask(photos, seed=0)
    assert (again.public_id, again.status) == (bad.public_id, JobStatus.FAILED)
    assert [job.public_id for job in tenant.tuning.page(limit=9)[0]][1:] == ids
    assert tenant.tuning.cancel(bad.public_id).status is JobStatus.FAILED
    assert tenant.tuning.cancel(other.public_id).status is JobStatus.CANCELLED
    assert bad.record.concept_url.removeprefix(f"{tenant.store.url}/") in tenant.copies()
    assert tenant.store.get(key).data == sound[:-20]
    tenant.store.put(key, sound)
    assert tenant.tuning.get(bad.public_id) == bad
    assert is_pending()
