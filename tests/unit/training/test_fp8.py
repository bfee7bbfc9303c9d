from pathlib import Path

import pytest
import torch
from torch import nn

from omnifarm.backbone.fp8 import Fp8Linear, use_fp8
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConfigError, TrainingError
from omnifarm.farm.submission import inspect_backbone
from omnifarm.miniature.benchmark import FEW, write_concept_folders
from omnifarm.training.compiling import has_compiler
from omnifarm.training.workbench import Workbench


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    # Rows of very different sizes: a scale for the whole matrix would round the small ones to nothing.
    made.weight.mul_(torch.logspace(-3, 3, outputs)[:, None])
    return made


@pytest.mark.parametrize("bias", [True, False])
def test_products_and_input_gradients_come_within_8_bit_rounding(bias: bool) -> None:
    exact = linear(64, 32, bias=bias)
    rough = Fp8Linear(exact)
    x = (torch.randn(40, 64) * torch.logspace(-2, 2, 40)[:, None]).requires_grad_()
    norms = exact.weight.norm(dim=1)
    upstream = torch.randn(40, 32) / norms
    # Outputs are compared in units of their own row of the weight, so that no large one hides the others.
    pairs = (
        (rough(x) / norms, exact(x) / norms),
        (torch.autograd.grad(rough(x), x, upstream)[0], torch.autograd.grad(exact(x), x, upstream)[0]),
    )
    for ours, theirs in pairs:
        # Three bits of mantissa round each factor by up to 1/16; errors of many products average out.
        error = ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).detach()
        assert float(error.max()) < 0.08
        assert float(error.max()) > 1e-4, "nothing was rounded"


def test_the_layers_of_a_backbone_lose_their_wide_weights(model) -> None:
    import copy

    rough = copy.deepcopy(model)
    assert use_fp8(rough) == 2 * 2 * 7
    names = dict(rough.language_model.model.layers.named_parameters())
    assert not any(parameter.ndim == 2 for parameter in names.values())
    assert isinstance(rough.language_model.lm_head, nn.Linear)


def test_trainable_or_odd_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="frozen weights"):
        Fp8Linear(nn.Linear(32, 32))
    with pytest.raises(ConfigError, match="multiples of 16"):
        Fp8Linear(nn.Linear(30, 32).requires_grad_(False))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it while it traces
@pytest.mark.skipif(not has_compiler("cpu"), reason="needs a C++ compiler")
def test_float8_may_be_compiled() -> None:
    assert Workbench.open("miniature", precision="float8", compiled=True).fingerprint


def test_a_recipe_in_float8_learns_over_a_backbone_in_float8_alone(tmp_path: Path) -> None:
    write_concept_folders(tmp_path, num_persons=1, num_pets=0, num_objects=0, sizes=FEW)
    ((_, spec),) = load_concepts(str(tmp_path))
    assert isinstance(spec, ConceptSpec)
    recipe = inspect_backbone("miniature", overrides={"precision": "float8", "steps": 2}).recipe
    bench = Workbench.open("miniature", precision="float8")
    lane = bench.lane(spec, recipe=recipe, identity="lane")
    bench.trainer.add(lane)
    while bench.trainer.lanes:
        bench.trainer.step()
    assert lane.stopped is None
    exact = Workbench.open("miniature", precision="bfloat16")
    with pytest.raises(TrainingError, match=r"asks for float8 weights, the backbone was loaded as (bfloat16|float32)"):
        exact.lane(spec, recipe=recipe, identity="lane")
    other = exact.lane(spec, recipe=recipe.with_overrides({"precision": "bfloat16"}), identity="lane")
    exact.trainer.add(other)
    while exact.trainer.lanes:
        exact.trainer.step()
    # Rounded, so not equal; the same mathematics, so close.
    assert lane.losses[0].total != other.losses[0].total
    assert lane.losses[0].total == pytest.approx(other.losses[0].total, rel=0.05)
