from pathlib import Path

import pytest

from omnifarm.backbone.weights import load_backbone
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConfigError
from omnifarm.farm.submission import inspect_backbone
from omnifarm.miniature.benchmark import FEW, write_concept_folders
from omnifarm.training.compiling import WORTH_LANE_STEPS, choose_attention, compiling_pays, has_compiler
from omnifarm.training.workbench import Workbench


def test_long_jobs_compile_and_short_ones_do_not() -> None:
    assert compiling_pays(num_concepts=20, steps=2_000, num_workers=8)
    assert not compiling_pays(num_concepts=1, steps=WORTH_LANE_STEPS - 1, num_workers=1)
    # The same work over more workers is less for each, and each compiles for itself.
    assert compiling_pays(num_concepts=8, steps=260, num_workers=2)
    assert not compiling_pays(num_concepts=8, steps=260, num_workers=8)


def test_without_a_cpp_compiler_nothing_is_compiled_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not has_compiler("cpu")
    assert has_compiler("cuda")
    (tmp_path / "clang++").touch(mode=0o755)
    assert has_compiler("cpu")


def test_the_kernel_that_was_fastest_is_taken() -> None:
    backbone = load_backbone(Path(__file__).parents[2] / "golden" / "a" / "checkpoint")
    model = backbone.model.language_model.model
    choose_attention(backbone)
    assert model.attention_kernel is None, "on a CPU the usual one is known"
    choose_attention(backbone, among=("varlen",))
    assert model.attention_kernel == "varlen"
    with pytest.raises(ConfigError, match="runs on cpu, found none"):
        choose_attention(backbone, among=("flex",))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it while it traces
@pytest.mark.skipif(not has_compiler("cpu"), reason="needs a C++ compiler")
def test_a_compiled_lane_learns_what_an_eager_one_learns_to_rounding(tmp_path: Path) -> None:
    write_concept_folders(tmp_path, num_persons=1, num_pets=0, num_objects=0, sizes=FEW)
    ((_, spec),) = load_concepts(str(tmp_path))
    assert isinstance(spec, ConceptSpec)
    results = []
    for compiled in (False, True):
        bench = Workbench.open("miniature", precision="float32", compiled=compiled)
        recipe = inspect_backbone("miniature", overrides={"precision": "float32", "steps": 3}).recipe
        lane = bench.lane(spec, recipe=recipe, identity="lane")
        bench.trainer.add(lane)
        while bench.trainer.lanes:
            bench.trainer.step()
        assert lane.step == 3
        results.append(lane)
    eager, fused = results
    assert [one.total for one in fused.losses] == pytest.approx([one.total for one in eager.losses], rel=1e-4)
