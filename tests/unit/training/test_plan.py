"""Plans: operations counted by hand, and predictions held to a real run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.packing import pack
from omnifarm.backbone.segments import TextSegment
from omnifarm.backbone.weights import load_backbone
from omnifarm.cli.train_plan import PlanReport, plan_training
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import Precision, TrainingRecipe
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, ConfigError
from omnifarm.farm.submission import inspect_backbone
from omnifarm.miniature.benchmark import FEW, write_concept_folders
from omnifarm.training.compiling import WORTH_LANE_STEPS, has_compiler
from omnifarm.training.lane import Lane
from omnifarm.training.plan import lane_costs, measuring_cost, predict, step_cost
from omnifarm.training.precision import DTYPES, weights_dtype
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE, write_concepts
from tests.unit.training.conftest import SPECIAL_IDS

ROOT = Path(__file__).parents[3]


def test_operations_are_those_counted_by_hand(config: BackboneConfig) -> None:
    answer = TextSegment(ids=(1, 2, 3), has_loss=True)
    cost = step_cost(pack([[answer]], special_ids=SPECIAL_IDS, config=config), config=config, bytes_per_number=4)
    # Two layers of width 32, inner width 64, two heads; 5 tokens, 4 of them with a loss; pairs are padded to 8 by 8.
    enter, leave, head = 3 * 32 * 32, 32 * 32 + 3 * 32 * 64, 32 * 64
    weights = 2 * enter * 5 + leave * (5 + 4) + 4 * head
    assert cost.flops == 4 * weights + 12 * 32 * (8 * 8 + 8 * 8)
    assert cost.num_tokens == 5


def test_a_prediction_scales_with_concepts_steps_and_rate(config: BackboneConfig) -> None:
    answer = TextSegment(ids=(1, 2, 3), has_loss=True)
    cost = step_cost(pack([[answer]], special_ids=SPECIAL_IDS, config=config), config=config, bytes_per_number=4)
    usual = {"lanes": 2, "flops_per_s": 1e6, "weight_bytes": 100.0, "soft_numbers": 10, "price_per_hour": 3.6}
    one = predict(cost, num_concepts=2, steps=10, **usual)
    assert one.seconds == pytest.approx(10 * cost.flops / 1e6)
    assert one.cost == pytest.approx(one.seconds / 1000)
    assert one.memory_bytes == 100 + cost.activation_bytes + 2 * 160
    assert predict(cost, num_concepts=6, steps=20, **usual).seconds == pytest.approx(6 * one.seconds)
    with pytest.raises(ConfigError, match="rate above 0"):
        predict(cost, num_concepts=1, steps=1, **{**usual, "flops_per_s": 0.0})


def test_a_held_out_measurement_is_a_forward_pass_and_is_planned_as_often_as_it_is_taken(
    config: BackboneConfig, make_lane: Callable[..., Lane], recipe: TrainingRecipe
) -> None:
    lanes = [make_lane("a"), make_lane("b", seed=1)]
    usual = {"special_ids": SPECIAL_IDS, "config": config, "bytes_per_number": 4, "keeps_scores": True}
    assert measuring_cost(lanes, **usual) is None
    learned = [lane_costs([lane], **usual, steps=range(1)) for lane in lanes]
    for lane in lanes:
        lane.held_out = lane.source
    measured = measuring_cost(lanes, **usual)
    assert measured is not None
    assert measured.num_tokens == sum(one.num_tokens for one in learned)
    assert measured.activation_bytes == max(one.activation_bytes for one in learned)
    # Half of the products with weights, a third of attention.
    total = sum(one.flops for one in learned)
    assert total / 3 < measured.flops < total / 2
    step = lane_costs(lanes, **usual, steps=range(2))
    rate = {"num_concepts": 2, "lanes": 2, "flops_per_s": 1e6, "weight_bytes": 0.0, "soft_numbers": 10}
    plain = predict(step, steps=10, **rate)
    more = predict(step, steps=10, measuring=measured, measurements=4, **rate)
    assert more.seconds == pytest.approx(plain.seconds + 4 * measured.flops / 1e6)


@pytest.fixture
def people(tmp_path: Path) -> str:
    return str(write_concepts(tmp_path / "people", ["ada", "bo"]))


def planned(people: str, **settings: object) -> PlanReport:
    overrides = {**RECIPE, **settings}
    return plan_training(people, backbone=str(CHECKPOINT), overrides=overrides, num_concepts=None, lanes=2)


def test_a_single_step_can_be_planned(people: str) -> None:
    one, ten = planned(people, steps=1), planned(people, steps=10)
    assert one.flops_per_s > 0
    assert one.prediction.seconds == pytest.approx(one.step.flops / one.flops_per_s)
    assert ten.step == one.step


def test_early_stopping_is_planned_with_its_measurements_and_without_its_luck(people: str) -> None:
    report = planned(people, steps=10, held_out_photos=1, held_out_every=3, patience=1)
    assert report.measuring is not None
    # After steps 3, 6, 9 and the last.
    flops = 10 * report.step.flops + 4 * report.measuring.flops
    assert report.prediction.seconds == pytest.approx(flops / report.flops_per_s)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it while it traces
@pytest.mark.skipif(not has_compiler("cpu"), reason="needs a C++ compiler")
def test_a_plan_measures_compiled_what_a_run_would_compile(people: str) -> None:
    long = planned(people, steps=WORTH_LANE_STEPS // 2)
    assert (long.compiled, long.rate_from) == (True, "measured here on cpu, compiled")
    short = planned(people, steps=WORTH_LANE_STEPS // 2 - 1)
    assert (short.compiled, short.rate_from) == (False, "measured here on cpu, eager")


def test_a_rate_that_is_given_is_not_measured_whatever_the_length(people: str) -> None:
    report = plan_training(
        people, backbone=str(CHECKPOINT), overrides={**RECIPE, "steps": 10_000}, num_concepts=None, lanes=2,
        flops_per_s=1e9,
    )  # fmt: skip
    assert (report.compiled, report.rate_from, report.flops_per_s) == (False, "given", 1e9)


def test_an_empty_place_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(ConceptError):
        plan_training(str(tmp_path), backbone="miniature", overrides={}, num_concepts=None, lanes=1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("kernel", ["matmul", "fused"])
def test_what_is_kept_for_the_backward_pass_is_counted(tmp_path: Path, precision: Precision, kernel: str) -> None:
    """Every tensor that autograd keeps in a real step of two lanes, the frozen weights apart."""
    write_concept_folders(tmp_path, seed=3, num_persons=1, num_pets=1, num_objects=0, sizes=FEW)
    backbone = load_backbone("miniature", dtype=DTYPES[precision])
    backbone.model.language_model.model.attention_kernel = kernel
    workbench = Workbench(backbone, lanes_per_pack=2)
    recipe = inspect_backbone("miniature", overrides={"steps": 2, "precision": precision}).recipe
    lanes = []
    for _, spec in load_concepts(str(tmp_path)):
        assert isinstance(spec, ConceptSpec)
        lanes.append(workbench.lane(spec, recipe=recipe, identity="x"))
        workbench.trainer.add(lanes[-1])
    frozen = {one.untyped_storage().data_ptr() for one in backbone.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        workbench.trainer.step()
    cost = lane_costs(
        lanes, special_ids=backbone.special_ids, config=backbone.config, bytes_per_number=DTYPES[precision].itemsize,
        keeps_scores=kernel == "matmul", steps=range(1),
    )  # fmt: skip
    assert cost.activation_bytes == pytest.approx(sum(kept.values()), rel=0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
def test_the_memory_of_a_real_training_is_predicted_to_a_quarter(tmp_path: Path) -> None:
    """Weights, autoencoder and what two lanes keep between forward and backward pass, beside the peak of a process."""
    write_concept_folders(tmp_path, seed=3, num_persons=1, num_pets=1, num_objects=0, sizes=FEW)
    report = plan_training(
        str(tmp_path), backbone="miniature", overrides={"precision": "float32"}, num_concepts=None, lanes=2,
        flops_per_s=1e9,
    )  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-m", "tests.unit.training.training_memory", str(tmp_path), "float32"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(said.stdout) == pytest.approx(report.prediction.memory_bytes, rel=0.25)


HELD_OUT = {"held_out_photos": 2, "held_out_every": 1}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("settings", [{}, HELD_OUT], ids=["learning", "measuring after every step"])
def test_a_prediction_holds_within_a_fifth_of_a_real_run(tmp_path: Path, settings: dict[str, int]) -> None:
    """Computing time is compared: a busy machine distorts it least."""
    torch.set_num_threads(1)
    concepts = tmp_path / "concepts"
    write_concept_folders(concepts, seed=3, num_persons=1, num_pets=1, num_objects=0, sizes=FEW)
    overrides = {"steps": 5, **settings}
    ratios = []
    for _ in range(3):
        planned = plan_training(
            str(concepts), backbone="miniature", overrides=overrides, num_concepts=2, lanes=2, now_s=time.process_time
        )
        ratios.append(_real_seconds(concepts, overrides) / planned.prediction.seconds)
        if abs(ratios[-1] - 1) < 0.2:
            return
    pytest.fail(f"real over predicted, three times: {ratios}")


def test_opening_and_beginning_are_part_of_the_time_on_the_wall(people: str) -> None:
    report = planned(people)
    assert report.opening_s > 0
    assert report.beginning_s > 0
    one, four = report.wall_s(devices=1), report.wall_s(devices=4)
    assert one > report.prediction.seconds
    assert four - report.opening_s == pytest.approx((one - report.opening_s) / 4)


def _real_seconds(concepts: Path, overrides: dict[str, int]) -> float:
    recipe = inspect_backbone("miniature", overrides=overrides).recipe
    workbench = Workbench(load_backbone("miniature", dtype=weights_dtype("bfloat16", "cpu")), lanes_per_pack=2)
    for _, spec in load_concepts(str(concepts)):
        assert isinstance(spec, ConceptSpec)
        workbench.trainer.add(workbench.lane(spec, recipe=recipe, identity="x"))
    started = time.process_time()
    while workbench.trainer.lanes:
        workbench.trainer.step()
    return time.process_time() - started
