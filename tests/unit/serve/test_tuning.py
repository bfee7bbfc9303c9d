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
        clock = ManualClock()
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
