"""A private Ray cluster on loopback, for the demo: started as a subprocess, ended by process id, nothing left behind.

Talks to Ray through its command line only, so that `omnifarm` itself needs no Ray here.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from omnifarm.errors import FarmError

_START_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCluster:
    """A running cluster.

    Attributes:
        address: Where programs join, "127.0.0.1:port".
        dashboard: Where jobs are submitted, "http://127.0.0.1:port".
        environment: Environment variables for every program that talks to this cluster.
        folder: The cluster's private temporary folder; its logs lie in `session_latest/logs`.
    """

    address: str
    dashboard: str
    environment: dict[str, str] = field(repr=False)
    folder: Path


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ray_program(*arguments: str) -> list[str]:
    """Return the command line of Ray's own program in this Python environment."""
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


class LocalNode:
    """A further node of a local cluster: a raylet of its own on the same machine, which may be killed.

    Args:
        cluster: The cluster to join.
        num_cpus: Logical CPUs it offers.
        checkout: The folder that holds `jobs/local_node.py`.
        environment: More variables for everything that runs on it.
    """

    def __init__(self, cluster: LocalCluster, *, num_cpus: int, checkout: Path, environment: Mapping[str, str]) -> None:
        command = [sys.executable, str(checkout / "jobs" / "local_node.py"), cluster.address, str(num_cpus)]
        with (cluster.folder / "nodes.log").open("ab") as sink:
            self._process = psutil.Popen(
                command,
                env={**cluster.environment, **environment},
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=cluster.folder,
            )

    def is_running(self) -> bool:
        """Whether its process is there; on an overloaded machine a node may not come up at all."""
        return self._process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """Return the training workers that run on it now."""
        found = []
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                # Ray renames its actors' processes after their class.
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill_raylet(self) -> bool:
        """Kill its raylet at once, as a lost machine would; its workers die of it. False when there is none to kill."""
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                if process.name() == "raylet":
                    process.kill()
                    return True
        return False

    def end(self) -> None:
        """End whatever is left of it; safe to repeat."""
        end_processes([*self._family(), self._process], patience_s=1.0)

    def _family(self) -> list[psutil.Process]:
        try:
            return self._process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []


@contextlib.contextmanager
def local_cluster(*, num_cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[LocalCluster]:
    """Run a one-node Ray cluster on loopback for the length of a `with` block.

    Args:
        num_cpus: Logical CPUs the head node schedules (>= 0; with 0 it needs a `LocalNode` to run anything).
        environment: More variables for everything that runs on it.

    Yields:
        The running cluster.

    Raises:
        FarmError: The cluster did not answer within two minutes; the message holds the end of its log.
    """
    # Ray's socket paths are limited to 107 bytes: the folder must be short, so it is not under the caller's.
    folder = Path(tempfile.mkdtemp(prefix="omf-"))
    gcs, dashboard = free_port(), free_port()
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if name not in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
        },
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
        # A token of this cluster's own: nobody else on the machine may submit to it, and none is left in the user's home.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
        # Ray would run training at the lowest priority, behind every idle program of the machine.
        "RAY_worker_niceness": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        **(environment or {}),
    }
    command = ray_program(
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        f"--temp-dir={folder}",
        f"--num-cpus={num_cpus}",
        "--object-store-memory=200000000",
        "--disable-usage-stats",
    )
    log = folder / "start.log"
    with log.open("wb") as sink:
        head = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT, cwd=folder)
    family = [psutil.Process(head.pid)]
    try:
        cluster = LocalCluster(
            address=f"127.0.0.1:{gcs}",
            dashboard=f"http://127.0.0.1:{dashboard}",
            environment=environment,
            folder=folder,
        )
        _wait_until_ready(cluster, head=head, log=log)
        yield cluster
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += family[0].children(recursive=True)
        end_processes(family)
        shutil.rmtree(folder, ignore_errors=True)


def end_processes(family: Sequence[psutil.Process], *, patience_s: float = 5.0) -> None:
    """Ask `family` to end, wait `patience_s` seconds, then kill what is left. Safe to repeat."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=patience_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=patience_s)


def _wait_until_ready(cluster: LocalCluster, *, head: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return once the job server answers."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    token = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
    while time.monotonic() < deadline:
        if head.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{cluster.dashboard}/api/jobs/", headers=token, timeout=5.0).status_code == 200:
                return
        time.sleep(0.5)
    raise FarmError(
        f"expected a local Ray cluster within {_START_TIMEOUT_S:.0f} s, found none answering at {cluster.dashboard}; "
        f"the end of its log:\n{log.read_text(errors='replace')[-1500:]}"
    )
