from pathlib import Path

from omnifarm.clock import ManualClock
from omnifarm.farm.job import JobState, pool_of
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import Backbone, submit_concepts
from omnifarm.store.memory import MemoryStore
from tests.unit.farm.concept_folders import write_concepts


def test_at_most_two_concepts_that_are_not_learned_are_submitted(
    store: MemoryStore, clock: ManualClock, backbone: Backbone, tmp_path: Path
) -> None:
    folder = str(write_concepts(tmp_path, ["ada", "bob", "cyd", "dan", "eve"], bad="bob"))
    queue = JobQueue(store, clock=clock)
    pool = pool_of(recipe_digest=backbone.recipe.digest(), backbone_fingerprint=backbone.fingerprint)

    def submit() -> dict[str, JobState]:
        found = submit_concepts(folder, queue=queue, backbone=backbone, max_concepts=2)
        return {record.name: record.state for record in found}

    # What cannot be learned takes nobody's place.
    assert submit() == {"ada": JobState.QUEUED, "bob": JobState.FAILED, "cyd": JobState.QUEUED}
    assert submit().keys() == {"ada", "bob", "cyd"}
    assert len(queue.list()) == 3
    (leased,) = (record for record in queue.lease_next("w", pool=pool, ttl_s=60, max=9) if record.name == "ada")
    queue.complete(leased, artifact="a")
    assert submit() == {
        "ada": JobState.COMMITTED,
        "bob": JobState.FAILED,
        "cyd": JobState.LEASED,
        "dan": JobState.QUEUED,
    }
