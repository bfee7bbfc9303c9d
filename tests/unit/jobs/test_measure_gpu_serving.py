"""The GPU script's own smoke mode: every batch is drawn, and its numbers hang together."""

import pytest

from tests.unit.jobs.smoke import smoke_report


@pytest.mark.slow
def test_the_smoke_mode_draws_every_batch_with_torch_transformers_and_safetensors_alone() -> None:
    report = smoke_report("measure_gpu_serving.py", "--batches", "1", "3", "--steps", "4")
    assert [row["batch"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        # Three evaluations of four 16-pixel tokens, most of them guided; frame tokens count as well.
        assert 3 * 4 <= round(row["image_s"] * row["tokens_per_s"], 3) <= 3 * 2 * (4 + 2)
        assert 0 < row["mfu"] < 1
    assert report["replay_s"]["unified"] > 0
    assert report["replay_s"]["sequential"] > 0
