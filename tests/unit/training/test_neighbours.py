"""What a concept of the miniature learns does not depend, in one bit, on who learns beside it in the same pack."""

from collections.abc import Sequence

import pytest
import torch

from omnifarm.backbone.weights import load_backbone
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import Precision
from omnifarm.concept.spec import ConceptSpec
from omnifarm.farm.submission import inspect_backbone
from omnifarm.miniature.benchmark import FEW, write_concept_folders
from omnifarm.store.memory import MemoryStore
from omnifarm.training.precision import weights_dtype
from omnifarm.training.workbench import Workbench


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[ConceptSpec]:
    folder = tmp_path_factory.mktemp("concepts")
    write_concept_folders(folder, seed=3, num_persons=1, num_pets=1, num_objects=1, sizes=FEW)
    return [spec for _, spec in load_concepts(str(folder)) if isinstance(spec, ConceptSpec)]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_concept_learns_the_same_in_any_company(specs: list[ConceptSpec], precision: Precision) -> None:
    kept = MemoryStore()
    backbone = load_backbone("miniature", dtype=weights_dtype(precision, "cpu"))
    recipe = inspect_backbone("miniature", overrides={"steps": 3, "precision": precision}).recipe

    def learned(order: Sequence[int], *, lanes_per_pack: int) -> dict[str, torch.Tensor]:
        workbench = Workbench(backbone, lanes_per_pack=lanes_per_pack, store=kept)
        lanes = [workbench.lane(specs[index], recipe=recipe, identity="x") for index in order]
        for lane in lanes:
            workbench.trainer.add(lane)
        while workbench.trainer.lanes:
            workbench.trainer.step()
        return {lane.name: lane.soft.detach() for lane in lanes}

    alone = learned(range(3), lanes_per_pack=1)
    for order, lanes_per_pack in (((0, 1, 2), 3), ((2, 1, 0), 2)):
        for name, soft in learned(order, lanes_per_pack=lanes_per_pack).items():
            assert torch.equal(soft, alone[name]), f"{name} in {order}, {lanes_per_pack} together"
