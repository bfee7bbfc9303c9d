"""Every ablation is a setting of the recipe, and does what it is named after."""

from dataclasses import replace

import pytest
import torch

from omnifarm.backbone.segments import TextSegment
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.spec import ConceptSpec, Negative
from omnifarm.training.lane import Lane
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE, write_concepts


@pytest.fixture(scope="module")
def backbone() -> LoadedBackbone:
    return load_backbone(str(CHECKPOINT))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ConceptSpec:
    folder = write_concepts(tmp_path_factory.mktemp("concepts"), ["ada"])
    ((_, loaded),) = load_concepts(str(folder))
    assert isinstance(loaded, ConceptSpec)
    return loaded


def learned(backbone: LoadedBackbone, spec: ConceptSpec, **settings: object) -> Lane:
    workbench = Workbench(backbone)
    recipe = TrainingRecipe.from_json({**RECIPE, "steps": 2, **settings})
    lane = workbench.lane(spec, recipe=recipe, identity="x")
    workbench.trainer.add(lane)
    while workbench.trainer.lanes:
        workbench.trainer.step()
    assert lane.is_done
    assert lane.stopped is None
    return lane


@pytest.mark.parametrize("settings", [{"num_und": 0}, {"num_gen": 0}, {"num_und": 5, "num_gen": 1}])
def test_the_number_of_soft_tokens_is_free(backbone: LoadedBackbone, spec: ConceptSpec, settings) -> None:
    lane = learned(backbone, spec, **settings)
    assert len(lane.soft) == lane.recipe.num_soft_tokens
    assert bool((lane.soft.detach().abs().sum(dim=1) > 0).all())


@pytest.mark.parametrize("is_coupled", [False, True])
def test_coupled_soft_tokens_run_through_the_understanding_expert(
    backbone: LoadedBackbone, spec: ConceptSpec, is_coupled: bool
) -> None:
    lane = learned(backbone, spec, is_coupled=is_coupled)
    system = lane.source.draw(0)[0].segments[0]
    assert isinstance(system, TextSegment)
    experts = {slot.expert for slot in system.soft}
    assert experts == ({"und"} if is_coupled else {"und", "gen"})


@pytest.mark.parametrize("init", ["zero", "random", "class_word", "visual"])
def test_every_start_can_be_learned_from(backbone: LoadedBackbone, spec: ConceptSpec, init: str) -> None:
    assert torch.isfinite(learned(backbone, spec, init=init).soft).all()


def test_a_loss_weight_scales_its_loss_alone(backbone: LoadedBackbone, spec: ConceptSpec) -> None:
    only_drawing = {"share_understanding": 0.0, "share_generation": 1.0, "share_editing": 0.0}
    plain, heavy = (learned(backbone, spec, **only_drawing, lambda_image=weight) for weight in (1.0, 3.0))
    assert heavy.losses[0].generation == plain.losses[0].generation
    assert heavy.losses[0].total == pytest.approx(3 * plain.losses[0].total)
    assert heavy.losses[0].grad_norm == pytest.approx(3 * plain.losses[0].grad_norm, rel=1e-4)


def test_without_editing_no_edit_is_drawn(backbone: LoadedBackbone, spec: ConceptSpec) -> None:
    lane = learned(backbone, spec, share_understanding=0.5, share_generation=0.5, share_editing=0.0)
    assert {sample.task for step in range(6) for sample in lane.source.draw(step)} == {"understanding", "generation"}


def test_an_artifact_says_what_was_not_learned(backbone: LoadedBackbone, spec: ConceptSpec) -> None:
    rich = replace(spec, negatives=(Negative(image=spec.images[1]),))
    for one, expected in ((rich, ["editing"]), (spec, ["editing", "recognition"])):
        lane = learned(backbone, one)
        done = Workbench(backbone).finish(lane, spec=one, identity="x")
        assert [warning.split()[0] for warning in done.manifest.warnings] == expected
