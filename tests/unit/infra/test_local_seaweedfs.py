"""The script that gives one machine its own S3: a real server is started, found, ended and started again."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from omnifarm.cli.local_seaweedfs import weed_binary
from omnifarm.errors import FarmError
from omnifarm.store.open import open_store

SCRIPT = Path(__file__).parents[3] / "infra" / "local" / "seaweedfs.sh"
NUM_PORTS = 8


class Script:
    """The script with a folder of its own."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.folder = folder
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHON": sys.executable, "S3_PORT": str(port)
        }  # fmt: skip

    def __call__(self, action: str) -> "subprocess.CompletedProcess[str]":
        command = ["bash", str(SCRIPT), action, str(self.folder)]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False, timeout=120)

    def server(self) -> psutil.Process:
        """Return the server that it started."""
        return psutil.Process(int((self.folder / "server.pid").read_text()))


def free_run_of_ports(count: int) -> int:
    """Return the first of `count` neighbouring TCP ports that are free on loopback now."""
    for first in range(21_000, 32_000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for number, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        else:
            return first
        finally:
            for each in sockets:
                each.close()
    raise AssertionError("no free ports")


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    try:
        weed_binary()
    except FarmError as error:
        pytest.skip(str(error))
    script = Script(tmp_path / "seaweedfs", port=free_run_of_ports(NUM_PORTS))
    yield script
    script("stop")


def exports(text: str) -> dict[str, str]:
    """Return the variables that a shell would have after `eval` of the script's output."""
    lines = [shlex.split(line) for line in text.splitlines()]
    assert all(words[0] == "export" and len(words) == 2 for words in lines)
    return dict(words[1].split("=", 1) for words in lines)


@pytest.mark.s3
@pytest.mark.slow
def test_a_server_is_started_once_keeps_to_loopback_and_keeps_its_data(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script("env").returncode == 1
    started = script("start")
    assert started.returncode == 0, started.stderr
    server = script.server()
    assert script("start").stdout == script("env").stdout == started.stdout
    assert script.server() == server

    listening = [each.laddr for each in server.net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN]
    assert len(listening) >= NUM_PORTS
    assert {address.ip for address in listening} == {"127.0.0.1"}
    for name in ("credentials.env", "identities.json"):
        assert (script.folder / name).stat().st_mode & 0o077 == 0

    variables = exports(started.stdout)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    open_store(variables["OMNIFARM_STORE"]).put("kept", b"data")
    assert script("stop").returncode == 0
    # In a container nobody may be there to collect it.
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    assert script("stop").returncode == 0

    again = script("start")
    assert again.stdout == started.stdout, again.stderr
    assert open_store(variables["OMNIFARM_STORE"]).get("kept").data == b"data"


def test_before_a_start_there_is_nothing_to_export_and_a_wrong_word_is_answered_with_the_right_ones(
    tmp_path: Path,
) -> None:
    script = Script(tmp_path / "seaweedfs", port=1)
    asked = script("env")
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "no server was started in" in asked.stderr
    assert script("stop").returncode == 0
    wrong = script("begin")
    assert wrong.returncode == 2
    assert "seaweedfs.sh start [FOLDER]" in wrong.stderr
