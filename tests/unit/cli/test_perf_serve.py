"""`omnifarm perf serve` end to end, on pictures too small and schedules too short to say anything about speed."""

import json

import pytest
import torch
from typer.testing import CliRunner

from omnifarm.cli.main import app
from omnifarm.cli.perf_serve import ServePlan
from omnifarm.errors import ConfigError


@pytest.mark.slow
def test_the_report_has_the_agreed_keys_and_both_sides_agree() -> None:
    threads = torch.get_num_threads()
    arguments = ["--steps", "2", "--side", "48", "--rounds", "1", "--residents", "288", "--threads", "1"]
    try:
        done = CliRunner().invoke(app, ["perf", "serve", "--json", "--precision", "float32", *arguments])
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    for key in ("images_c32_ratio", "edits_c32_ratio", "questions_c32_ratio"):
        assert report[key] > 1, "a batch is faster than one request after another even here"
    assert set(report["replay_s"]) == {"unified", "sequential"}
    assert set(report["step_reuse"]) == {"2", "3", "4"}
    assert report["resident_10k_loss"] < 1
    assert report["http_overhead"] is None
    for count in ("c1", "c8", "c32"):
        entry = report["questions"][count]
        assert 0 < entry["first_token_p50_s"] <= entry["p50_s"] <= entry["p99_s"]


def test_too_few_residents_for_the_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 800"):
        ServePlan(residents=100)
