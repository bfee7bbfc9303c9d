"""In which type a device holds the weights a recipe asks for."""

from pathlib import Path

import pytest
import torch

from omnifarm.backbone import native
from omnifarm.backbone.native import gains_by_bf16, multiplies_bf16
from omnifarm.backbone.weights import load_backbone
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import TrainingError
from omnifarm.miniature.benchmark import FEW, write_concept_folders
from omnifarm.training import precision
from omnifarm.training.precision import serves, weights_dtype
from omnifarm.training.workbench import Workbench


def multiplies(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    for module in (native, precision):
        monkeypatch.setattr(module, "multiplies_bf16", lambda device: answer)


def test_bf16_weights_stay_bf16_where_the_device_multiplies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_dtype("bfloat16", "cuda") == torch.bfloat16
    multiplies(monkeypatch, True)
    assert weights_dtype("bfloat16", "cpu") == torch.bfloat16
    assert not serves(load_backbone("miniature").model, "bfloat16")


def test_a_cpu_without_bf16_products_learns_a_bf16_recipe_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiplies(monkeypatch, False)
    write_concept_folders(tmp_path, seed=3, num_persons=1, num_pets=0, num_objects=0, sizes=FEW)
    [(_, spec)] = load_concepts(str(tmp_path))
    assert isinstance(spec, ConceptSpec)
    recipe = TrainingRecipe(steps=2, batch_size=3, precision="bfloat16")

    def learned(workbench: Workbench, recipe: TrainingRecipe) -> torch.Tensor:
        lane = workbench.lane(spec, recipe=recipe, identity="x")
        workbench.trainer.add(lane)
        while workbench.trainer.lanes:
            workbench.trainer.step()
        return lane.soft.detach()

    bench = Workbench.open("miniature", precision="bfloat16")
    in_float32 = recipe.with_overrides({"precision": "float32"})
    plain = learned(Workbench(load_backbone("miniature")), in_float32)
    assert torch.equal(learned(bench, recipe), plain)
    # Only bf16 is taken for float32: whoever wants 8 bits is told.
    with pytest.raises(TrainingError, match="asks for float8 weights"):
        bench.lane(spec, recipe=recipe.with_overrides({"precision": "float8"}), identity="x")


def test_every_gpu_multiplies_bf16() -> None:
    assert multiplies_bf16("cuda:0")


@pytest.mark.parametrize(
    ("cpu", "gains"),
    [
        ({"architecture": "x86_64", "cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"architecture": "x86_64", "cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64", "bf16": True}, True),
    ],
)
def test_of_processors_that_multiply_bf16_not_all_are_faster_so(cpu: dict[str, str | bool], gains: bool) -> None:
    assert gains_by_bf16(cpu) is gains
