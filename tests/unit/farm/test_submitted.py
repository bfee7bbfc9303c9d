"""A worker reads one concept, whatever else lies at its place, and keeps its leases while it reads."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import ManualClock
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.sources import LocalSource
from omnifarm.errors import ConceptError, FarmError
from omnifarm.farm.job import JobRecord, JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import submitted_key
from omnifarm.farm.submission import Backbone, submit_concepts
from omnifarm.farm.submitted import SubmittedConcepts
from omnifarm.farm.worker import Worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.store.counting import CountingStore
from omnifarm.store.memory import MemoryStore
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import write_concepts

NUM_CONCEPTS = 300


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hundreds of concepts of two small photographs, which borrow the photographs of others as negatives."""
    root = tmp_path_factory.mktemp("many")
    chance = np.random.default_rng(0)
    for number in range(NUM_CONCEPTS):
        folder = root / f"c{number}"
        folder.mkdir()
        (folder / "concept.yaml").write_text(f"class: {'dog' if number % 2 else 'cup'}\ninfo: <c{number}> is small.\n")
        for photo in range(2):
            Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{photo}.png")
    return root


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Files read from folders from now on; listings as "*"."""
    counted: Counter[str] = Counter()
    read, paths = LocalSource.read, LocalSource.paths

    def counting_read(source: LocalSource, path: str, *, max_bytes: int) -> bytes:
        counted[path] += 1
        return read(source, path, max_bytes=max_bytes)

    def counting_paths(source: LocalSource) -> tuple[str, ...]:
        counted["*"] += 1
        return paths(source)

    monkeypatch.setattr(LocalSource, "read", counting_read)
    monkeypatch.setattr(LocalSource, "paths", counting_paths)
    return counted


def concepts(store: MemoryStore | CountingStore, backbone: Backbone) -> SubmittedConcepts:
    return SubmittedConcepts(store, recipe_digest=backbone.recipe.digest(), backbone_fingerprint=backbone.fingerprint)


def test_one_concept_of_hundreds_costs_its_own_pictures_and_is_what_the_whole_set_says(
    many: Path, store: MemoryStore, clock: ManualClock, backbone: Backbone, reads: Counter[str]
) -> None:
    records = submit_concepts(str(many), queue=JobQueue(store, clock=clock), backbone=backbone)
    assert len(records) == NUM_CONCEPTS
    assert reads["c0/0.png"] == 1, "the submission reads each picture once"
    loaded_set = dict(load_concepts(str(many)))
    reads.clear()
    counted = CountingStore(store)
    submitted = concepts(counted, backbone)
    specs = {record.name: submitted.spec(record) for record in records}
    assert specs == loaded_set
    assert (counted.requests, reads) == ({"get": NUM_CONCEPTS}, {}), "no picture was read, no folder listed"

    record = next(record for record in records if record.name == "c7")
    spec = submitted.spec(record)
    assert spec.digest() == record.identity.spec_digest
    for image in spec.all_images():
        spec.open_image(image)
    assert reads == {image.path: 1 for image in spec.all_images()}
    assert reads.total() == 2 + 100, "its own, and the most that is borrowed"


def test_leases_are_kept_however_slowly_pictures_are_read(
    tmp_path: Path,
    store: MemoryStore,
    clock: ManualClock,
    backbone: Backbone,
    loaded: LoadedBackbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = JobQueue(store, clock=clock)
    submit_concepts(str(write_concepts(tmp_path, ["ada", "bob", "eve"])), queue=queue, backbone=backbone)
    read, taken, began_s = LocalSource.read, list[JobRecord](), clock.monotonic_s()

    def slow_read(source: LocalSource, path: str, *, max_bytes: int) -> bytes:
        clock.advance_s(30.0)
        # A new queue each time: it looks for leases that have run out at once.
        rival = JobQueue(store, clock=clock)
        taken.extend(rival.lease_next("rival", pool=queue.list()[0].identity.pool, ttl_s=40, max=3))
        return read(source, path, max_bytes=max_bytes)

    monkeypatch.setattr(LocalSource, "read", slow_read)
    worker = Worker(
        "w",
        store=store,
        workbench=Workbench(loaded, clock=clock),
        recipe=backbone.recipe,
        settings=WorkerSettings(lanes=3, lease_s=40, heartbeat_s=5),
        clock=clock,
    )
    worker.run()
    assert clock.monotonic_s() - began_s == 6 * 30, "six photographs, each longer than half a lease"
    assert taken == []
    assert {(record.state, record.attempts) for record in queue.list()} == {(JobState.COMMITTED, 1)}


def test_a_job_called_off_while_its_pictures_are_read_is_let_go_and_leaves_nothing(
    tmp_path: Path,
    store: MemoryStore,
    clock: ManualClock,
    backbone: Backbone,
    loaded: LoadedBackbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = JobQueue(store, clock=clock)
    (job,) = submit_concepts(str(write_concepts(tmp_path, ["ada"])), queue=queue, backbone=backbone)
    read, num_read = LocalSource.read, 0

    def read_and_cancel(source: LocalSource, path: str, *, max_bytes: int) -> bytes:
        nonlocal num_read
        num_read += 1
        clock.advance_s(10.0)
        queue.cancel(job.job_id)
        return read(source, path, max_bytes=max_bytes)

    monkeypatch.setattr(LocalSource, "read", read_and_cancel)
    workbench = Workbench(loaded, clock=clock, store=store)
    Worker("w", store=store, workbench=workbench, recipe=backbone.recipe, clock=clock).run()
    assert num_read == 1, "it has two photographs"
    assert [key.partition("/")[0] for key in store.list()] == ["jobs", "queue", "submitted"]


def test_a_picture_that_was_changed_since_is_not_learned_from(
    tmp_path: Path, store: MemoryStore, clock: ManualClock, backbone: Backbone, loaded: LoadedBackbone
) -> None:
    queue = JobQueue(store, clock=clock)
    folder = write_concepts(tmp_path, ["ada"])
    submit_concepts(str(folder), queue=queue, backbone=backbone)
    (folder / "ada" / "images" / "1.png").write_bytes((folder / "ada" / "images" / "0.png").read_bytes())
    Worker("w", store=store, workbench=Workbench(loaded), recipe=backbone.recipe, clock=clock).run()
    (record,) = queue.list()
    assert record.state is JobState.FAILED
    assert "1.png: expected the picture with digest" in (record.error or "")


def test_what_was_not_submitted_or_is_damaged_is_refused_with_what_to_do(
    tmp_path: Path, store: MemoryStore, clock: ManualClock, backbone: Backbone
) -> None:
    folder = write_concepts(tmp_path, ["ada", "bob"])
    ada, bob = submit_concepts(str(folder), queue=JobQueue(store, clock=clock), backbone=backbone)
    whole = store.get(submitted_key(ada.job_id)).data
    for damage in (b"torn", b"[]", b"{}", store.get(submitted_key(bob.job_id)).data):
        store.put(submitted_key(ada.job_id), damage)
        with pytest.raises(ConceptError, match="submit it again"):
            concepts(store, backbone).spec(ada)
    store.delete(submitted_key(ada.job_id))
    with pytest.raises(ConceptError, match=r"found nothing.*submit it again"):
        concepts(store, backbone).spec(ada)
    store.put(submitted_key(ada.job_id), whole)
    other = SubmittedConcepts(store, recipe_digest="other", backbone_fingerprint=backbone.fingerprint)
    with pytest.raises(FarmError, match="asks for the recipe"):
        other.spec(ada)
    assert concepts(store, backbone).spec(ada).name == "ada"
