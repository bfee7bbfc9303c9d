"""The GPU script's own smoke mode: every combination runs, and its numbers hang together."""

import pytest

from tests.unit.jobs.smoke import smoke_report


@pytest.mark.slow
def test_the_smoke_mode_measures_every_combination_with_torch_transformers_and_safetensors_alone() -> None:
    report = smoke_report("measure_gpu_training.py", "--repeats", "1", "--lanes", "1", "2")
    rows = {(row["precision"], row["lanes"], row["shared"]): row for row in report["rows"]}
    assert set(rows) == {(p, n, s) for p in ("bf16", "fp8") for n in (1, 2) for s in (True, False)}
    for row in rows.values():
        assert row["step_s"] > 0
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["step_s"])
        assert 0 < row["mfu"] < 1
    for precision in ("bf16", "fp8"):
        assert rows[precision, 2, True]["tokens"] == 2 * rows[precision, 1, True]["tokens"]
        assert rows[precision, 1, True]["tokens"] < rows[precision, 1, False]["tokens"]
