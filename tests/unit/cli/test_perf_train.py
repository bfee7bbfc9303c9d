"""`omnifarm perf train` runs all its sides, and they compute the same."""

import math

import pytest
import torch

from omnifarm.cli import perf_train
from omnifarm.cli.perf_train import AT_ITS_BEST, LADDER, Side, measure


@pytest.mark.slow
def test_every_side_is_measured_and_trains_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Side] = {}
    report_of = perf_train._report

    def keep(sides: dict[str, Side], **values: object) -> object:
        kept.update(sides)
        return report_of(sides, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(perf_train, "_report", keep)
    lines: list[str] = []
    # What compiling gives is measured by `make perf`; here it would only take minutes.
    with torch.compiler.set_stance("force_eager"):
        report = measure(num_concepts=2, rounds=1, threads=1, log=lines.append)

    assert len(lines) == 3 * (len(LADDER) + len(AT_ITS_BEST))
    assert set(report["step_s"]) == {*LADDER, *AT_ITS_BEST}
    assert all(took > 0 for took in report["step_s"].values())
    assert math.prod(report["gains"].values()) == pytest.approx(report["speedup_vs_plain"], rel=0.02)
    assert 0.2 < report["share_of_tokens_saved"] < 0.9
    assert 0 < report["mfu"] < 1
    # Every side drew the same samples: in float32 to rounding, with bf16 weights to theirs.
    plain = [lane.losses[0].total for lane in kept["plain"].lanes]
    last = [lane.losses[-1].total for lane in kept["plain"].lanes]
    assert [lane.losses[0].total for lane in kept["caching"].lanes] == pytest.approx(plain, rel=1e-6)
    for name in ("padding", "sharing"):
        assert [lane.losses[0].total for lane in kept[name].lanes] == pytest.approx(plain, rel=1e-4)
        assert [lane.losses[-1].total for lane in kept[name].lanes] == pytest.approx(last, rel=1e-3)
    for name in ("precision", "compile", "lanes", *AT_ITS_BEST):
        assert [lane.losses[0].total for lane in kept[name].lanes] == pytest.approx(plain, rel=0.03)
        assert [lane.losses[-1].total for lane in kept[name].lanes] == pytest.approx(last, rel=0.02)
    # Held-out photographs amplify what bf16 does to three steps; beside the same precision nothing is lost.
    assert report["final_loss"]["ours"] == pytest.approx(report["final_loss"]["plain_bf16"], rel=0.02)
