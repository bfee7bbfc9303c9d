"""What `omnifarm perf train` says follows from the seconds it measured."""

import math

import pytest

from omnifarm.cli.perf_train import AT_ITS_BEST, LADDER, Preparation, Side, _report, active_parameters
from omnifarm.farm.submission import inspect_backbone
from omnifarm.training.loop import Trainer
from omnifarm.training.sharding import Replicated
from omnifarm.training.step import PackCount
from tests.unit.training.conftest import SPECIAL_IDS

SECONDS = {"plain": 8.0, "caching": 6.0, "padding": 4.0, "sharing": 3.0, "precision": 2.0, "compile": 1.5, "lanes": 1.0,
           "plain_bf16": 5.0, "plain_compiled": 2.5}  # fmt: skip


def test_gains_multiply_to_the_speedup_and_mfu_counts_four_operations(model, config, make_lane) -> None:
    sides = {}
    for name in (*LADDER, *AT_ITS_BEST):
        lane = make_lane("a")
        lane.step = 2
        trainer = Trainer(Replicated(model), special_ids=SPECIAL_IDS, config=config)
        trainer.count = PackCount(num_tokens=1000 if name == "padding" else 400)
        took = SECONDS[name]
        sides[name] = Side(
            lanes=[lane], step=trainer.step, trainer=trainer, seconds=[took, 2 * took, took / 2], cpu_seconds=[took]
        )
    report = _report(sides, final_loss={"plain": 1.0, "ours": 1.0}, threads=1)
    assert report["speedup_vs_plain"] == 8.0
    assert (report["best_plain"], report["speedup_vs_best_plain"]) == ("plain_compiled", 2.5)
    assert set(report["gains"]) == {"caching", "padding", "sharing", "precision", "compile", "lanes"}
    assert math.prod(report["gains"].values()) == pytest.approx(8.0, rel=5e-3)
    assert report["tokens_per_s"] == 200
    assert report["share_of_tokens_saved"] == 0.6
    rate = max(report["matmul_gflops_per_s"].values()) * 1e9
    assert report["mfu"] == pytest.approx(4 * active_parameters() * 200 / rate, rel=0.02, abs=1e-4)
    # Six layers of width 192 and inner width 512: four square projections and a gated MLP.
    assert active_parameters() == 6 * (4 * 192**2 + 3 * 192 * 512)


def test_what_is_prepared_once_is_shared_by_the_steps_of_a_training(make_lane) -> None:
    side = Side(
        lanes=[make_lane("a")], step=list, prepared=Preparation(seconds=26.0, cpu_seconds=52.0), training_steps=260,
        seconds=[1.0, 3.0, 2.0], cpu_seconds=[4.0],
    )  # fmt: skip
    assert (side.step_s, side.step_cpu_s) == pytest.approx((2.1, 4.2))


def test_a_training_of_the_miniature_takes_the_steps_that_are_assumed() -> None:
    assert (
        inspect_backbone("miniature", overrides={}).recipe.steps == Side.__dataclass_fields__["training_steps"].default
    )
