"""What stays behind, what may be taken back, and what must be gone: over real artifacts of a tiny backbone."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.cli.local_seaweedfs import LocalSeaweedFS
from omnifarm.clock import ManualClock
from omnifarm.concept.prepared import prepared_folder
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import NotFoundError, StoreError
from omnifarm.farm.control import FarmControl, Order
from omnifarm.farm.erasure import call_off, erase_concept
from omnifarm.farm.garbage import collect_garbage
from omnifarm.farm.index import READY
from omnifarm.farm.job import JobIdentity, JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import checkpoint_key, record_key, submitted_key
from omnifarm.farm.submission import inspect_backbone, submit_concepts
from omnifarm.farm.worker import Worker
from omnifarm.store.base import Object, Store
from omnifarm.store.memory import MemoryStore
from omnifarm.store.open import open_store
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE, write_concepts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_concepts(tmp_path_factory.mktemp("concepts"), ["ada", "bob"])


@pytest.fixture(scope="module")
def loaded() -> LoadedBackbone:
    return load_backbone(str(CHECKPOINT))


class Farm:
    """A farm in memory that learns for real."""

    def __init__(self, folder: Path, loaded: LoadedBackbone, store: Store | None = None) -> None:
        self.folder, self.loaded = folder, loaded
        self.store, self.clock = store or MemoryStore(), ManualClock()
        self.queue = JobQueue(self.store, clock=self.clock)
        self.repository = ConceptRepository(self.store)

    def submit(self, *, seed: int = 0, only: Sequence[str] = ()) -> tuple[dict[str, str], Worker]:
        backbone = inspect_backbone(str(CHECKPOINT), overrides={**RECIPE, "steps": 2, "seed": seed})
        jobs = submit_concepts(str(self.folder), queue=self.queue, backbone=backbone, only=only)
        workbench = Workbench(self.loaded, clock=self.clock, store=self.store)
        worker = Worker("w", store=self.store, workbench=workbench, recipe=backbone.recipe, clock=self.clock)
        return {job.name: job.job_id for job in jobs}, worker

    def learn(self, *, seed: int = 0, only: Sequence[str] = ()) -> dict[str, str]:
        jobs, worker = self.submit(seed=seed, only=only)
        worker.run()
        self.clock.advance_s(60)
        return jobs


@pytest.fixture
def farm(folder: Path, loaded: LoadedBackbone) -> Farm:
    return Farm(folder, loaded)


def test_a_deleted_concept_leaves_nothing_and_its_neighbour_everything(farm: Farm) -> None:
    jobs = farm.learn()
    farm.store.put(checkpoint_key(jobs["ada"]), b"soft tokens of a face")
    before = set(farm.store.list())
    report = erase_concept("ada", store=farm.store, queue=farm.queue)
    left = set(farm.store.list())
    assert (report.versions, report.jobs) == (1, 1)
    assert report.objects == len(before - left)
    assert not [key for key in left if "/ada/" in key or jobs["ada"] in key]
    assert farm.repository.latest("bob").version == jobs["bob"]
    assert not [key for key in left if key.startswith("prepared/")], "bob's, too: they are ada's negatives"
    assert erase_concept("ada", store=farm.store, queue=farm.queue).objects == 0
    assert farm.learn()["ada"] == jobs["ada"], "the same concept may be learned again"
    assert farm.repository.latest("ada").version == jobs["ada"]


def test_prepared_pictures_go_also_when_the_photographs_went_first(farm: Farm, tmp_path: Path) -> None:
    farm.folder = write_concepts(tmp_path / "concepts", ["eve"])
    farm.learn()
    assert len(list(farm.store.list("prepared/"))) == 2
    farm.folder.rename(tmp_path / "away")
    erase_concept("eve", store=farm.store, queue=farm.queue)
    assert list(farm.store.list()) == []


def test_prepared_negatives_go_with_their_concept(farm: Farm, tmp_path: Path) -> None:
    farm.folder = write_concepts(tmp_path / "concepts", ["ada", "stranger"])
    (farm.folder / "stranger" / "images").rename(farm.folder / "ada" / "negatives")
    farm.learn(only=["ada"])
    assert len(list(farm.store.list("prepared/"))) == 4
    erase_concept("ada", store=farm.store, queue=farm.queue)
    assert list(farm.store.list()) == []


def test_photographs_of_the_deleted_that_are_borrowed_again_go_with_the_borrower(farm: Farm) -> None:
    farm.learn()
    erase_concept("bob", store=farm.store, queue=farm.queue)
    assert not list(farm.store.list("prepared/"))
    farm.learn(seed=1, only=["ada"])
    assert len(list(farm.store.list("prepared/"))) == 4
    for name in ("bob", "ada"):
        erase_concept(name, store=farm.store, queue=farm.queue)
    assert list(farm.store.list()) == []


def test_photographs_of_the_deleted_go_that_others_borrowed_on_another_backbone(farm: Farm) -> None:
    farm.learn()
    picture = next(record for record in farm.queue.list() if record.name == "bob").pictures[0]
    other = JobIdentity(spec_digest="s", recipe_digest="r", backbone_fingerprint="e" * 64)
    farm.queue.submit(name="eve", concept_url="u", identity=other, num_steps=2, pictures=[picture])
    key = f"{prepared_folder(other.backbone_fingerprint, dtype='bfloat16')}{picture}{'0' * 48}.safetensors"
    farm.store.put(key, b"latents of bob")
    erase_concept("bob", store=farm.store, queue=farm.queue)
    assert key not in farm.store.list()


def test_a_training_whose_pictures_were_erased_prepares_them_again(farm: Farm) -> None:
    undisturbed = Farm(farm.folder, farm.loaded)
    undisturbed.learn()
    _, worker = farm.submit()
    worker._look()
    worker.step()
    for key in list(farm.store.list("prepared/")):
        farm.store.erase(key)
    worker._hand_back()
    farm.learn()  # another worker goes on, and has nothing in memory
    assert len(list(farm.store.list("prepared/"))) == 4
    expected, found = (
        one.repository.load("ada", fingerprint=farm.loaded.fingerprint)[1].table() for one in (undisturbed, farm)
    )
    assert torch.equal(expected, found)


def test_a_job_that_is_called_off_while_it_waits_begins_anew_when_retried(farm: Farm) -> None:
    jobs, worker = farm.submit()
    worker._look()
    worker.step()
    worker._hand_back()
    assert call_off(jobs["ada"], store=farm.store, queue=farm.queue).state is JobState.CANCELLED
    assert list(farm.store.list("checkpoints/")) == [checkpoint_key(jobs["bob"])]
    farm.queue.retry(jobs["ada"])
    worker._look()
    assert {name: held.lane.step for name, held in worker._held.items()} == {"ada": 0, "bob": 1}
    worker.run()
    farm.store.put(checkpoint_key(jobs["ada"]), b"of a finished job, gc's")
    assert call_off(jobs["ada"], store=farm.store, queue=farm.queue).state is JobState.COMMITTED
    assert checkpoint_key(jobs["ada"]) in farm.store.list()


def test_gc_takes_pictures_of_jobs_that_were_called_off_and_of_records_that_list_none(farm: Farm) -> None:
    jobs, worker = farm.submit()
    worker._look()
    worker._hand_back()
    assert collect_garbage(farm.store, queue=farm.queue, dry_run=True).prepared == ()
    farm.queue.cancel(jobs["bob"])
    assert collect_garbage(farm.store, queue=farm.queue, dry_run=True).prepared == (), "ada lists bob's, too"
    values = json.loads(farm.store.get(record_key(jobs["ada"])).data)
    del values["pictures"]  # as a version wrote it that did not know of them
    farm.store.put(record_key(jobs["ada"]), json.dumps(values).encode())
    assert len(collect_garbage(farm.store, queue=farm.queue, dry_run=False).prepared) == 4
    assert not list(farm.store.list("prepared/"))
    worker.run()
    assert farm.repository.latest("ada").version == jobs["ada"]


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize("moment", ["preparing", "saving", "committing"])
def test_a_worker_erases_what_it_wrote_after_the_deletion(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, moment: str, is_cancelled: bool
) -> None:
    jobs, worker = farm.submit()

    def delete_ada_before(owner: object, name: str) -> None:
        act = getattr(owner, name)

        def late(*args: Any, **named: Any) -> object:
            if not args or args[0].name == "ada":
                monkeypatch.setattr(owner, name, act)
                if is_cancelled:
                    farm.queue.cancel(jobs["ada"])
                else:
                    erase_concept("ada", store=farm.store, queue=farm.queue)
            return act(*args, **named)

        monkeypatch.setattr(owner, name, late)

    places = {
        "preparing": (worker._workbench, "lane"), "saving": (worker, "_save"), "committing": (worker._repository, "commit")
    }  # fmt: skip
    delete_ada_before(*places[moment])
    worker._look()
    farm.clock.advance_s(31)
    worker.step()  # renews, then saves
    assert (f"checkpoints/{jobs['ada']}.safetensors" in farm.store.list()) == (moment != "preparing")
    farm.clock.advance_s(6)
    worker.run()
    left = [key for key in farm.store.list() if "/ada/" in key or jobs["ada"] in key]
    # What is cancelled may be queued again.
    kinds = ["jobs", "queue/cancelled", "submitted"] if is_cancelled else []
    assert [kind for kind in kinds if not left.pop(0).startswith(f"{kind}/")] == left == []
    assert not list(farm.store.list("prepared/")), "bob's are ada's negatives, and this worker has them in memory"
    assert farm.repository.latest("bob").version == jobs["bob"]


class FailsOnce(MemoryStore):
    """Has ada deleted just before her tensors are written, and fails once at one of the requests that follow."""

    def __init__(self, fails_at: str) -> None:
        super().__init__()
        self.fails_at: str | None = fails_at
        self.delete_ada: Callable[[], object] | None = None

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        if key.startswith("artifacts/ada/") and self.delete_ada is not None:
            delete_ada, self.delete_ada = self.delete_ada, None
            delete_ada()
        etag = super().put(key, data, if_none_match=if_none_match, if_match=if_match)
        self._fail(key)  # after it: an answer that was lost
        return etag

    def get(self, key: str) -> Object:
        if any(self.list("artifacts/ada/")):
            self._fail(key)
        return super().get(key)

    def erase(self, key: str) -> None:
        self._fail(f"erase {key}")
        super().erase(key)

    def _fail(self, what: str) -> None:
        if self.delete_ada is None and self.fails_at is not None and self.fails_at in what:
            self.fails_at = None
            raise StoreError("away for a moment")


@pytest.mark.parametrize("is_heartbeat_first", [False, True])
@pytest.mark.parametrize("fails_at", ["manifest.json", "losses.parquet", "jobs/", "erase artifacts/"])
def test_a_deletion_during_a_commit_holds_although_the_store_fails_once(
    folder: Path, loaded: LoadedBackbone, fails_at: str, is_heartbeat_first: bool
) -> None:
    store = FailsOnce("nothing yet")
    farm = Farm(folder, loaded, store)
    jobs, worker = farm.submit()
    worker._look()
    worker.step()
    worker.step()

    def delete_ada() -> None:
        erase_concept("ada", store=store, queue=farm.queue)
        store.fails_at = fails_at

    store.delete_ada = delete_ada
    worker._commit()
    assert store.fails_at is None, "nothing failed"
    if is_heartbeat_first:
        worker._heartbeat()
    worker.run()
    assert not [key for key in store.list() if "/ada/" in key or jobs["ada"] in key]
    assert farm.repository.latest("bob").version == jobs["bob"]


@pytest.mark.s3
def test_a_bucket_that_keeps_versions_keeps_none_of_a_deleted_concept(
    folder: Path, loaded: LoadedBackbone, seaweedfs: LocalSeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="remembers")
    client.put_bucket_versioning(Bucket="remembers", VersioningConfiguration={"Status": "Enabled"})

    def kept(text: str) -> list[str]:
        answer = client.list_object_versions(Bucket="remembers")
        entries = [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]
        assert not answer["IsTruncated"]
        # The index's old entries are empty objects named by digests.
        return [entry["Key"] for entry in entries if text in entry["Key"] and "/queue/" not in entry["Key"]]

    farm = Farm(folder, loaded, open_store("s3://remembers/farm"))
    farm.store.put(checkpoint_key(farm.learn()["ada"]), b"soft tokens of a face")
    jobs = farm.learn()
    farm.store.delete(checkpoint_key(jobs["ada"]))  # as a commit does
    farm.repository.roll_back("ada", jobs["ada"])
    assert kept(f"checkpoints/{jobs['ada']}")
    assert len(kept("prepared/")) == 4
    before = len(kept(jobs["bob"]))
    erase_concept("ada", store=farm.store, queue=farm.queue)
    assert kept("/ada/") + kept(jobs["ada"]) == []
    assert not kept("prepared/"), "bob's two photographs are ada's negatives"
    assert len(kept(jobs["bob"])) == before
    client.close()


def test_a_rollback_holds_when_the_version_it_was_made_from_is_deleted(farm: Farm) -> None:
    first, _, bad = (farm.learn(seed=seed)["ada"] for seed in range(3))
    farm.repository.roll_back("ada", first)
    farm.repository.delete("ada", version=bad)
    assert farm.repository.latest("ada").version == first
    newest = farm.learn(seed=3)["ada"]
    assert farm.repository.latest("ada").version == newest


def test_a_rollback_holds_until_the_concept_is_learned_anew(farm: Farm) -> None:
    old = farm.learn(seed=0)["ada"]
    new = farm.learn(seed=1)["ada"]
    assert [one.version for one in farm.repository.versions("ada")] == [new, old]
    assert farm.repository.latest("ada").version == new
    farm.repository.roll_back("ada", old)
    assert farm.repository.latest("ada").version == old
    assert [one.version for one in farm.repository.list() if one.name == "ada"] == [old]
    first = farm.repository.load("ada", fingerprint=farm.loaded.fingerprint)[1].table()
    again = farm.repository.load("ada", fingerprint=farm.loaded.fingerprint, version=new)[1].table()
    assert not torch.equal(first, again)
    newest = farm.learn(seed=2)["ada"]
    assert farm.repository.latest("ada").version == newest
    with pytest.raises(NotFoundError):
        farm.repository.roll_back("ada", "no-such-version")


def test_garbage_is_what_nothing_refers_to(farm: Farm) -> None:
    jobs = farm.learn()
    kept = set(farm.store.list())
    farm.store.put(checkpoint_key(jobs["ada"]), b"old")
    farm.store.put(f"artifacts/ada/{jobs['ada']}/soft_tokens-{'0' * 16}.safetensors", b"of a lost race")
    farm.store.put(f"queue/ready/{'0' * 16}/4/{'0' * 12}/{jobs['bob']}.abc", b"")
    farm.store.put(submitted_key("0" * 32), b"of a submission that died before it wrote the record")
    farm.store.put(prepared_folder(farm.loaded.fingerprint, dtype="float32") + f"{'0' * 64}.safetensors", b"of nobody")
    FarmControl(farm.store).order(Order.STOP, cell="driver-that-died-0")
    backbone = inspect_backbone(str(CHECKPOINT), overrides={**RECIPE, "seed": 9})
    waiting = submit_concepts(str(farm.folder), queue=farm.queue, backbone=backbone, only=["ada"])[0]
    kept |= {f"jobs/{waiting.job_id}.json", submitted_key(waiting.job_id)}
    for entry in list(farm.queue.index.entries(READY, pool=waiting.identity.pool)):
        farm.queue.index.delete(entry)  # as a crash in the middle of a submission leaves it
    seen = collect_garbage(farm.store, queue=farm.queue, dry_run=True)
    assert [len(part) for part in seen.to_json().values()] == [1, 1, 1, 1, 1, 1, 1]
    assert collect_garbage(farm.store, queue=farm.queue, dry_run=False) == seen
    left = set(farm.store.list())
    assert kept <= left
    assert len(left - kept) == 1, "the waiting job's entry"
    assert [one.job_id for one in farm.queue.index.entries(READY)] == [waiting.job_id]
