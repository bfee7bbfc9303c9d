"""Off loopback no node starts and no job joins without a token."""

import os
import subprocess
from pathlib import Path

import pytest

from omnifarm.errors import FarmError
from omnifarm.farm.cluster_access import is_loopback, require_token

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "infra" / "plain" / "ray_node.sh"


def start(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the script with a `ray` that says what it was asked and with whose authentication."""
    programs = folder / "bin"
    programs.mkdir()
    ray = programs / "ray"
    ray.write_text('#!/bin/sh\necho "ray $* mode=$RAY_AUTH_MODE loopback=$RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"\n')
    ray.chmod(0o755)
    own = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "TMPDIR": str(folder), **environment}
    return subprocess.run([str(SCRIPT), *arguments], env=own, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [("head", "10.0.0.1"), ("worker", "10.0.0.2", "10.0.0.1")])
def test_a_node_without_a_token_does_not_start(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = start(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ray get-auth-token --generate" in done.stderr


def test_authentication_cannot_be_switched_off_there(tmp_path: Path) -> None:
    done = start(tmp_path, "head", "10.0.0.1", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="t")
    assert done.returncode == 1
    assert done.stdout == ""


def test_a_node_with_a_token_starts_with_authentication_on(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    done = start(tmp_path, "worker", "10.0.0.2", "10.0.0.1", "--num-gpus=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "ray", "start", "--block", "--disable-usage-stats", "--node-ip-address=10.0.0.2", "--address=10.0.0.1:6379",
        "--num-gpus=1", "mode=token", "loopback=",
    ]  # fmt: skip


def test_loopback_needs_no_token_and_stays_loopback(tmp_path: Path) -> None:
    done = start(tmp_path, "head", "127.0.0.1")
    assert done.returncode == 0
    assert "--dashboard-host=127.0.0.1" in done.stdout
    # Without it Ray listens on the machine's public address, whatever address it was given.
    assert "loopback=0" in done.stdout


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:6379", True),
        ("ray://127.0.0.1:10001", True),
        ("localhost:6379", True),
        ("[::1]:6379", True),
        ("10.0.0.1:6379", False),
        ("ray://head.example:10001", False),
        ("auto", False),
    ],
)
def test_only_loopback_counts_as_this_machine(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_a_job_joins_a_cluster_of_other_machines_with_a_token_only(tmp_path: Path) -> None:
    with pytest.raises(FarmError, match="RAY_AUTH_MODE is 'not set'"):
        require_token("10.0.0.1:6379", {"HOME": str(tmp_path)})
    with pytest.raises(FarmError, match="RAY_AUTH_MODE is 'disabled'"):
        require_token("10.0.0.1:6379", {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"})
    with pytest.raises(FarmError, match="none was found"):
        require_token("10.0.0.1:6379", {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)})
    require_token("10.0.0.1:6379", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"})
    require_token("127.0.0.1:6379", {})


def test_the_token_is_in_no_message(tmp_path: Path) -> None:
    with pytest.raises(FarmError) as caught:
        require_token("10.0.0.1:6379", {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "hush-hush"})
    assert "hush-hush" not in str(caught.value)
