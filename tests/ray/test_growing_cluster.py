"""A cluster that is empty when the job comes: a real autoscaler adds nodes, as KubeRay does, because the job asks."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from omnifarm.cli.local_cluster import end_processes, free_port, ray_program
from omnifarm.clock import SystemClock
from omnifarm.farm.job import JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.store.local import LocalStore
from tests.unit.farm.concept_folders import CHECKPOINT, write_concepts

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # What Ray and its dependencies warn about is theirs.
    pytest.mark.filterwarnings("ignore"),
]

MOST_NODES = 2
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
RECIPE = '{"batch_size": 2, "warmup_steps": 2, "num_und": 2, "num_gen": 2, "precision": "float32"}'


class GrowingCluster:
    """A head that trains nothing, and an autoscaler that starts nodes of one CPU on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        port = free_port()
        self.environment = {
            **os.environ,
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
            "RAY_worker_niceness": "0",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            # Autoscaling as on Kubernetes (v2), with nodes that are processes of this machine.
            "RAY_enable_autoscaler_v2": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        (folder / "autoscaling.json").write_text(json.dumps(self._autoscaling(f"127.0.0.1:{port}")))
        head = ray_program(
            "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=0",
            "--include-dashboard=false", f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}", f"--temp-dir={folder}", "--object-store-memory=80000000",
            "--disable-usage-stats", f"--autoscaling-config={folder / 'autoscaling.json'}",
        )  # fmt: skip
        with (folder / "start.log").open("wb") as sink:
            self._head = psutil.Popen(
                head,
                # Of the head alone: its nodes have names of their own.
                env={**self.environment, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID},
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )

    def wait(self) -> None:
        """Return once it is up."""
        log, deadline_s = self._folder / "start.log", time.monotonic() + 150
        while "Ray runtime started" not in log.read_text():
            assert self._head.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.5)

    def num_nodes(self) -> int:
        """Return how many nodes run, the head included."""
        names = []
        for process in self._head.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                names.append(process.name())
        return names.count("raylet")

    def status(self) -> str:
        """Return what `ray status` says."""
        asked = subprocess.run(
            ray_program("status"), env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert asked.returncode == 0, asked.stderr
        return asked.stdout

    def end(self) -> None:
        """End the head and every node."""
        family = [self._head]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += self._head.children(recursive=True)
        end_processes(family)

    @staticmethod
    def _autoscaling(address: str) -> dict[str, object]:
        unused = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands")
        unused += ("head_start_ray_commands", "worker_start_ray_commands")
        return {
            **{name: [] for name in unused},
            "cluster_synced_files": [],
            "file_mounts": {},
            "docker": {},
            "cluster_name": "growing",
            "max_workers": MOST_NODES,
            "upscaling_speed": 10,
            "idle_timeout_minutes": 10,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": address,
                "head_node_id": HEAD_ID,
                "launch_multiple": True,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "cpu": {
                    "resources": {"CPU": 1, "object_store_memory": 80_000_000},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": MOST_NODES,
                },
            },
        }


@pytest.fixture
def growing() -> Iterator[GrowingCluster]:
    pytest.importorskip("ray")
    # Ray's socket paths are limited to 107 bytes: not under pytest's long folder.
    with tempfile.TemporaryDirectory(prefix="omf-", ignore_cleanup_errors=True) as folder:
        cluster = GrowingCluster(Path(folder))
        try:
            cluster.wait()
            yield cluster
        finally:
            cluster.end()


def test_a_job_on_an_empty_cluster_gets_its_nodes_and_takes_its_request_back(
    growing: GrowingCluster, tmp_path: Path
) -> None:
    assert growing.num_nodes() == 1
    # Enough steps that one worker is still busy when the second node has started.
    job = subprocess.run(
        [
            sys.executable, "jobs/train_concepts.py", "--json", "--device", "cpu",
            "--concepts", str(write_concepts(tmp_path / "concepts", ["ada", "bob", "cyd"])),
            "--store", str(tmp_path / "store"), "--backbone", str(CHECKPOINT), "--steps", "400", "--recipe", RECIPE,
            "--workers-per-cell", "1", "--lanes", "1",
        ],
        cwd=Path(__file__).parents[2], env=growing.environment, capture_output=True, text=True, check=False, timeout=420,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr
    assert "needs 1 CPUs, the cluster has 0: waiting for nodes" in job.stderr
    records = JobQueue(LocalStore(tmp_path / "store"), clock=SystemClock()).list()
    assert [record.state for record in records] == [JobState.COMMITTED] * 3
    # Three workers were of use; the first node came for the plan, the second because the fleet asked for more.
    assert growing.num_nodes() == 1 + MOST_NODES
    assert "from request_resources()" not in growing.status()
