"""Pre-training from nothing, by the command that a reader of the model card would type."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omnifarm.backbone.weights import load_backbone

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def _begin(out: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "jobs/pretrain_miniature.py", "--out", str(out), "--budget", "0.1", "--groups", "6"]
    return subprocess.Popen(
        [*command, "--no-compiled", *options], cwd=ROOT, text=True, stderr=subprocess.PIPE, start_new_session=True
    )


def _kill(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_pre_training_goes_on_and_ends_in_a_backbone(tmp_path):
    out = tmp_path / "miniature"
    first = _begin(out)
    try:
        deadline = time.monotonic() + 300
        while not (out / "vit.safetensors").is_file():
            assert first.poll() is None, first.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        _kill(first)
    assert not (out / "weights" / "ema.safetensors").exists()
    tower_written = (out / "vit.safetensors").stat().st_mtime_ns

    second = _begin(out)
    said = second.communicate(timeout=420)[1]
    assert second.returncode == 0, said
    assert (out / "vit.safetensors").stat().st_mtime_ns == tower_written
    lines = [json.loads(line) for line in (out / "drawing.jsonl").read_text().splitlines()]
    assert lines[-1]["final"]
    assert not any(p.isnan().any() for p in load_backbone(out / "weights").model.parameters())
    assert (out / "weights" / "judge.safetensors").is_file()


def test_a_folder_of_another_corpus_is_refused(tmp_path):
    (tmp_path / "corpus.json").write_text(json.dumps({"seed": 2, "groups": 6, "held_out": 200, "world": "elsewhere"}))
    refused = _begin(tmp_path)
    said = refused.communicate(timeout=120)[1]
    assert refused.returncode != 0
    assert "choose another --out" in said
