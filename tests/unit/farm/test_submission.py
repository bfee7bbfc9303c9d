import json
from dataclasses import replace
from pathlib import Path

import pytest

from omnifarm.clock import ManualClock
from omnifarm.farm.job import JobState, pool_of
from omnifarm.farm.overview import outcome
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import record_key
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


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.CANCELLED, JobState.COMMITTED])
def test_a_record_that_cannot_be_read_fails_alone_and_stays_as_it_is(
    state: JobState, store: MemoryStore, clock: ManualClock, backbone: Backbone, tmp_path: Path
) -> None:
    folder = str(write_concepts(tmp_path, ["ada", "bob", "cyd"]))
    queue = JobQueue(store, clock=clock)
    _, bob = submit_concepts(folder, queue=queue, backbone=backbone, only=["ada", "bob"])
    of_another_release = replace(bob, state=state, artifact="a" if state is JobState.COMMITTED else None).to_json()
    data = json.dumps({**of_another_release, "schema_version": 9}).encode()
    store.put(record_key(bob.job_id), data)
    submitted = submit_concepts(folder, queue=JobQueue(store, clock=clock), backbone=backbone)
    expected = {"ada": JobState.QUEUED, "bob": JobState.FAILED, "cyd": JobState.QUEUED}
    assert {record.name: record.state for record in submitted} == expected
    # At the end it is neither forgotten nor taken for learned.
    found = outcome(submitted, queue=queue)
    assert {record.name: record.state for record in found} == expected
    for record in (submitted[1], found[1]):
        assert record.job_id == bob.job_id
        assert record.error == (
            f"concept 'bob' cannot be learned: its job record {record_key(bob.job_id)} cannot be read: a job record of "
            "schema 2 was expected, found 9: use the release of OmniFarm that wrote it"
        )
    assert store.get(record_key(bob.job_id)).data == data
