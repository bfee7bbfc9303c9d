"""Plans: operations counted by hand, and predictions held to a real run."""

import time
from pathlib import Path

import pytest
import torch

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.packing import pack
from omnifarm.backbone.segments import TextSegment
from omnifarm.backbone.weights import load_backbone
from omnifarm.cli.train_plan import plan_training
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import Precision
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, ConfigError
from omnifarm.farm.submission import inspect_backbone
from omnifarm.miniature.benchmark import write_concept_folders
from omnifarm.training.plan import lane_costs, predict, step_cost
from omnifarm.training.precision import DTYPES, weights_dtype
from omnifarm.training.workbench import Workbench
from tests.unit.training.conftest import SPECIAL_IDS


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


def test_an_empty_place_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(ConceptError):
        plan_training(str(tmp_path), backbone="miniature", overrides={}, num_concepts=None, lanes=1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("kernel", ["matmul", "fused"])
def test_what_is_kept_for_the_backward_pass_is_counted(tmp_path: Path, precision: Precision, kernel: str) -> None:
    """Every tensor that autograd keeps in a real step of two lanes, the frozen weights apart."""
    write_concept_folders(tmp_path, seed=3, num_persons=1, num_pets=1, num_objects=0)
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
def test_a_prediction_holds_within_a_fifth_of_a_real_run(tmp_path: Path) -> None:
    """Computing time is compared: a busy machine distorts it least."""
    torch.set_num_threads(1)
    concepts = tmp_path / "concepts"
    write_concept_folders(concepts, seed=3, num_persons=1, num_pets=1, num_objects=0)
    steps = 5
    ratios = []
    for _ in range(3):
        planned = plan_training(
            str(concepts), backbone="miniature", overrides={"steps": steps}, num_concepts=2, lanes=2,
            now_s=time.process_time,
        )  # fmt: skip
        ratios.append(_real_seconds(concepts, steps) / planned.prediction.seconds)
        if abs(ratios[-1] - 1) < 0.2:
            return
    pytest.fail(f"real over predicted, three times: {ratios}")


def _real_seconds(concepts: Path, steps: int) -> float:
    recipe = inspect_backbone("miniature", overrides={"steps": steps}).recipe
    workbench = Workbench(load_backbone("miniature", dtype=weights_dtype("bfloat16", "cpu")), lanes_per_pack=2)
    for _, spec in load_concepts(str(concepts)):
        assert isinstance(spec, ConceptSpec)
        workbench.trainer.add(workbench.lane(spec, recipe=recipe, identity="x"))
    started = time.process_time()
    while workbench.trainer.lanes:
        workbench.trainer.step()
    return time.process_time() - started
