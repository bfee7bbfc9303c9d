from dataclasses import replace

import pytest

from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.concept import samples
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.prepared import PreparedImages
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSamples
from omnifarm.concept.self_description import MOST_PHOTOS, Looks, said_of, seen_looks
from omnifarm.concept.spec import ConceptSpec
from omnifarm.concept.templates import PLAIN
from omnifarm.errors import ConfigError
from omnifarm.miniature.benchmark import BenchmarkConcept, draw_benchmark
from omnifarm.miniature.benchmark_files import write_plain
from omnifarm.miniature.text import appearance_turns
from omnifarm.training.checkpoint import save_lane
from omnifarm.training.workbench import Workbench


@pytest.fixture(scope="module")
def miniature() -> LoadedBackbone:
    return load_backbone("miniature")


@pytest.fixture(scope="module")
def concepts() -> tuple[BenchmarkConcept, ...]:
    return draw_benchmark(11, num_persons=1, num_pets=1, num_objects=1)


@pytest.fixture(scope="module")
def specs(concepts: tuple[BenchmarkConcept, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ConceptSpec]:
    folder = tmp_path_factory.mktemp("drawn")
    write_plain(folder, concepts)
    return {name: spec for name, spec in load_concepts(str(folder)) if isinstance(spec, ConceptSpec)}


def test_what_the_miniature_says_of_photographs_is_what_is_on_them(
    miniature: LoadedBackbone, concepts: tuple[BenchmarkConcept, ...], specs: dict[str, ConceptSpec]
) -> None:
    images = PreparedImages(miniature)
    right = total = 0
    for concept in concepts:
        spec = specs[concept.name]
        looks = seen_looks(spec, PLAIN.looks(spec.class_noun), backbone=miniature, images=images)
        truth = {turn.question: turn.answer for turn in appearance_turns(concept.identity, spec.identifier)}
        assert {question for question, _ in looks} < set(truth)
        right += sum(truth[question] == answer for question, answer in looks)
        total += len(looks)
    assert total >= 15
    assert right >= 0.9 * total


def test_most_photographs_decide_and_each_is_announced(
    miniature: LoadedBackbone, specs: dict[str, ConceptSpec]
) -> None:
    spec = next(iter(specs.values()))
    questions = PLAIN.looks(spec.class_noun)[:2]
    images, announced = PreparedImages(miniature), list[int]()
    (good, *_), bad = spec.images, next(iter(spec.negatives)).image
    mixed = replace(spec, images=(bad, good, good) * MOST_PHOTOS)
    looks = seen_looks(
        mixed, questions, backbone=miniature, images=images, between=lambda: announced.append(len(announced))
    )
    assert len(announced) == MOST_PHOTOS
    told = said_of(spec, good, questions, backbone=miniature, images=images)
    expected = zip((question.format(c=spec.identifier) for question in questions), told, strict=True)
    assert looks == tuple(expected)


def test_a_concept_learns_what_it_says_of_itself_only_if_the_recipe_asks(
    miniature: LoadedBackbone, specs: dict[str, ConceptSpec]
) -> None:
    bare = replace(next(iter(specs.values())), qa=())
    images = PreparedImages(miniature)

    def told(*, looks: Looks | None = None, **settings: object) -> Looks:
        recipe = TrainingRecipe.from_json(settings)
        return ConceptSamples(bare, recipe=recipe, backbone=miniature, images=images, looks=looks).looks

    questions = [question.format(c=bare.identifier) for question in PLAIN.looks(bare.class_noun)]
    assert told() == ()
    assert [question for question, _ in told(is_self_described=True)] == questions
    alone = {"share_understanding": 0.0, "share_generation": 0.5, "share_editing": 0.5}
    assert told(is_self_described=True, **alone) == (), "nobody would be asked"
    known = (("What color is it?", "Red."),)
    assert told(is_self_described=True, looks=known) == known, "what was said before is not asked again"


def test_classes_outside_the_drawn_world_are_asked_nothing(
    miniature: LoadedBackbone, specs: dict[str, ConceptSpec]
) -> None:
    strange = replace(next(iter(specs.values())), class_noun="spaceship")
    images, recipe = PreparedImages(miniature), TrainingRecipe(is_self_described=True)
    assert PLAIN.looks("spaceship") == ()
    assert ConceptSamples(strange, recipe=recipe, backbone=miniature, images=images).looks == ()
    assert said_of(strange, strange.images[0], [], backbone=miniature, images=images) == []


def test_a_lane_that_goes_on_teaches_what_was_said_when_it_began(
    miniature: LoadedBackbone, specs: dict[str, ConceptSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = next(iter(specs.values()))
    workbench = Workbench(miniature)
    recipe = TrainingRecipe(steps=4, is_self_described=True, precision="float32")
    lane = workbench.lane(spec, recipe=recipe, identity="x")
    assert lane.looks
    saved = save_lane(lane, identity="x")
    monkeypatch.setattr(samples, "seen_looks", lambda *_, **__: pytest.fail("asked again"))
    again = workbench.lane(spec, recipe=recipe, identity="x", checkpoint=saved)
    assert again.looks == lane.looks


def test_where_the_backbone_is_shared_nobody_is_asked(
    miniature: LoadedBackbone, specs: dict[str, ConceptSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workbench, "is_shared", True)
    recipe = TrainingRecipe(is_self_described=True, precision="float32")
    with pytest.raises(ConfigError, match="describes itself"):
        Workbench(miniature).lane(next(iter(specs.values())), recipe=recipe, identity="x")
