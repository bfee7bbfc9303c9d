"""Whatever happens on a farm, no credential of its environment is in a record, in any other object, or in the log."""

import io
import logging
from pathlib import Path

import pytest

from omnifarm.backbone.weights import load_backbone
from omnifarm.cli.local_seaweedfs import LocalSeaweedFS
from omnifarm.clock import SystemClock
from omnifarm.errors import OmniFarmError
from omnifarm.farm.job import JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import inspect_backbone, submit_concepts
from omnifarm.farm.worker import Worker
from omnifarm.logs import configure
from omnifarm.store.open import open_store
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE, write_concepts

SECRETS = {
    name: f"hunter2-{name.lower()}" for name in ("RAY_AUTH_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY")
}


@pytest.mark.s3
def test_no_credential_is_written_anywhere(
    tmp_path: Path, seaweedfs: LocalSeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SECRETS, **seaweedfs.environment()}.items():
        monkeypatch.setenv(name, value)
    secret = seaweedfs.environment()["AWS_SECRET_ACCESS_KEY"]
    log, ours = io.StringIO(), logging.getLogger("omnifarm")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(ours, name, getattr(ours, name))  # to be put back
    configure(level="DEBUG", stream=log)
    store = open_store(f"s3://{seaweedfs.bucket}/no-secrets")
    queue = JobQueue(store, clock=SystemClock())
    backbone = inspect_backbone(str(CHECKPOINT), overrides=RECIPE)
    folder = write_concepts(tmp_path, ["ada", "bob", "eve"], bad="eve")
    jobs = {job.name: job for job in submit_concepts(str(folder), queue=queue, backbone=backbone)}
    worker = Worker(
        "w",
        store=store,
        workbench=Workbench(load_backbone(str(CHECKPOINT)), store=store),
        recipe=backbone.recipe,
    )
    worker.run()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-wrong")
    with pytest.raises(OmniFarmError) as refused:
        open_store(f"s3://{seaweedfs.bucket}/no-secrets").get("k")
    states = {name: queue.get(job.job_id).state for name, job in jobs.items()}
    assert states == {"ada": JobState.COMMITTED, "bob": JobState.COMMITTED, "eve": JobState.FAILED}
    written = {key: store.get(key).data for key in store.list()}
    written["the log"] = log.getvalue().encode()
    written["the error"] = f"{refused.value} {refused.value.facts}".encode()
    assert b"lane_started" in written["the log"]
    assert not [place for place, data in written.items() if secret.encode() in data or b"hunter2" in data]
