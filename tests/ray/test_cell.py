"""A real cell: Ray Train workers over a random backbone, one of them killed in the middle."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from omnifarm.clock import SystemClock
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.spec import ConceptSpec
from omnifarm.farm.job import JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import Backbone, inspect_backbone, submit_concepts
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.store.local import LocalStore
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE, write_concepts

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # What Ray and its dependencies warn about is theirs.
    pytest.mark.filterwarnings("ignore"),
]

NAMES = ["ada", "bob", "cyd", "eve"]
BAD = "eve"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_concepts(tmp_path_factory.mktemp("concepts"), NAMES, bad=BAD)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return inspect_backbone(str(CHECKPOINT), overrides={**RECIPE, "steps": 60})


class Killer(threading.Thread):
    """Kills one worker process once some concept has taken a step."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__(daemon=True)
        self._queue = queue
        self.killed: int | None = None

    def run(self) -> None:
        deadline = time.monotonic() + 240
        while self.killed is None and time.monotonic() < deadline:
            if any(record.step for record in self._queue.list()):
                self.killed = _kill_one_worker()
            time.sleep(0.2)


def _kill_one_worker() -> int | None:
    for process in psutil.Process().children(recursive=True):
        # Ray renames its actors' processes after their class.
        if "RayTrainWorker" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return process.pid
    return None


def test_a_killed_worker_loses_nothing(cluster: Any, folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    queue = JobQueue(store, clock=SystemClock())
    submit_concepts(str(folder), queue=queue, backbone=backbone)
    killer = Killer(queue)
    killer.start()
    cluster.run_cell(
        cluster.CellConfig(
            store=str(tmp_path / "store"),
            backbone=backbone.name,
            name="cell",
            recipe=backbone.recipe,
            num_workers=2,
            max_failures=3,
            worker=WorkerSettings(lanes=2, lease_s=6, heartbeat_s=0.2, checkpoint_s=0.5, poll_s=0.5),
        )
    )
    killer.join(timeout=5)
    records = {record.name: record for record in queue.list()}
    assert killer.killed is not None, "the test did not kill anybody"
    assert {name: record.state for name, record in records.items()} == {
        name: JobState.FAILED if name == BAD else JobState.COMMITTED for name in NAMES
    }
    assert "0.png" in (records[BAD].error or "")
    assert max(record.attempts for record in records.values()) >= 2, "somebody took a dead worker's concept over"
    manifests = [key for key in store.list("artifacts/") if key.endswith("manifest.json")]
    assert len(manifests) == len(NAMES) - 1, "every good concept is committed exactly once"
    for name in set(NAMES) - {BAD}:
        manifest, _ = ConceptRepository(store).load(name, fingerprint=backbone.fingerprint)
        assert len(manifest.losses["step"]) == 60

    # The job, run again on what is finished, starts nothing and says what failed.
    again = subprocess.run(
        [
            sys.executable, "jobs/train_concepts.py", "--json", "--concepts", str(folder),
            "--store", str(tmp_path / "store"), "--backbone", str(CHECKPOINT), "--steps", "60",
            "--batch-size", "3", "--lr", "0.01", "--precision", "float32",
            "--recipe", '{"num_und": 2, "num_gen": 2, "warmup_steps": 2}',
        ],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert again.returncode == 1, again.stderr
    assert "3 are learned already" in again.stderr
    assert "workers with" not in again.stderr
    assert {record.name: record for record in queue.list()} == records


def test_a_cell_that_shares_one_backbone_goes_on_when_a_rank_is_killed(
    cluster: Any, folder: Path, backbone: Backbone, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    queue = JobQueue(store, clock=SystemClock())
    submit_concepts(str(folder), queue=queue, backbone=backbone, only=["ada", "bob", "cyd"])
    killer = Killer(queue)
    killer.start()
    cluster.run_cell(
        cluster.CellConfig(
            store=str(tmp_path / "store"),
            backbone=backbone.name,
            name="shared",
            recipe=backbone.recipe,
            num_workers=2,
            sharding="zero3",
            max_failures=3,
            worker=WorkerSettings(lanes=2, lease_s=10, heartbeat_s=0.5, checkpoint_s=0.5, poll_s=0.5),
        )
    )
    killer.join(timeout=5)
    assert killer.killed is not None, "the test did not kill anybody"
    records = queue.list()
    assert [record.state for record in records] == [JobState.COMMITTED] * 3, [record.error for record in records]
    assert max(record.attempts for record in records) >= 2, "somebody took a dead worker's concept over"
    for record in records:
        manifest, _ = ConceptRepository(store).load(record.name, fingerprint=backbone.fingerprint)
        assert len(manifest.losses["step"]) == 60


def test_without_gpus_a_worker_has_its_part_of_its_nodes_memory(cluster: Any) -> None:
    assert 0 < cluster.device_bytes(use_gpu=False) * cluster.cluster_cpus() <= psutil.virtual_memory().total


def test_a_cell_that_shares_one_backbone_learns_what_a_whole_copy_learns(
    cluster: Any, folder: Path, backbone: Backbone, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    queue = JobQueue(store, clock=SystemClock())
    short = replace(backbone, recipe=backbone.recipe.with_overrides({"steps": 4}))
    submit_concepts(str(folder), queue=queue, backbone=short, only=["ada", "bob", "cyd"])
    cluster.run_cell(
        cluster.CellConfig(
            store=str(tmp_path / "store"),
            backbone=backbone.name,
            name="shared",
            recipe=short.recipe,
            num_workers=2,
            sharding="zero3",
            max_failures=0,
            worker=WorkerSettings(lanes=2, lease_s=60, poll_s=0.5),
        )
    )
    records = {record.name: record for record in queue.list()}
    assert {record.state for record in records.values()} == {JobState.COMMITTED}

    workbench = Workbench.open(backbone.name, precision=short.recipe.precision)
    specs = dict(load_concepts(str(folder)))
    for name, record in records.items():
        spec = specs[name]
        assert isinstance(spec, ConceptSpec)
        lane = workbench.lane(spec, recipe=short.recipe, identity=record.job_id)
        workbench.trainer.add(lane)
        while workbench.trainer.lanes:
            workbench.trainer.step()
        expected = workbench.finish(lane, spec=spec, identity=record.job_id)
        _, soft_tokens = ConceptRepository(store).load(name, fingerprint=backbone.fingerprint)
        # Bit for bit with larger layers (tests/contracts). With this tiny checkpoint an AMD EPYC differed in rounding, an
        # Intel Xeon did not; why was not found out (perhaps where gathered weights lie in memory).
        torch.testing.assert_close(soft_tokens.table(), expected.soft_tokens.table(), rtol=1e-4, atol=1e-5)
