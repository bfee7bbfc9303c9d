"""The GPU script's own smoke mode: every batch is drawn, and its numbers hang together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

BLOCKED = """
import sys
for name in ("ray", "deepspeed", "diffusers", "boto3", "typer", "pyarrow", "fastapi", "rich"):
    sys.modules[name] = None
sys.argv = ["measure", "--smoke", "--batches", "1", "3", "--steps", "4"]
import runpy
runpy.run_path("jobs/measure_gpu_serving.py", run_name="__main__")
"""


@pytest.mark.slow
def test_the_smoke_mode_draws_every_batch_with_torch_transformers_and_safetensors_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["batch"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        # Three evaluations of four 16-pixel tokens, most of them guided; frame tokens count as well.
        assert 3 * 4 <= round(row["image_s"] * row["tokens_per_s"], 3) <= 3 * 2 * (4 + 2)
        assert 0 < row["mfu"] < 1
    assert report["replay_s"]["unified"] > 0
    assert report["replay_s"]["sequential"] > 0
