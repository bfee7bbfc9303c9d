from dataclasses import replace

import pytest

from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.prepared import PreparedImages
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSamples
from omnifarm.concept.self_description import MOST_PHOTOS, said_of, seen_looks
from omnifarm.concept.spec import ConceptSpec
from omnifarm.concept.templates import PLAIN
from omnifarm.miniature.benchmark import BenchmarkConcept, draw_benchmark
from omnifarm.miniature.benchmark_files import write_plain
from omnifarm.miniature.text import appearance_turns


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
    assert looks == [(question.format(c=spec.identifier), text) for question, text in zip(questions, told, strict=True)]


def test_a_concept_learns_what_it_says_of_itself_only_if_the_recipe_asks(
    miniature: LoadedBackbone, specs: dict[str, ConceptSpec]
) -> None:
    spec = next(iter(specs.values()))
    bare = replace(spec, qa=())
    images = PreparedImages(miniature)
    asked = {}
    for described in (False, True):
        recipe = TrainingRecipe(batch_size=8, is_self_described=described)
        samples = ConceptSamples(bare, recipe=recipe, backbone=miniature, images=images)
        texts = {
            one.ids
            for step in range(30)
            for sample in samples.draw(step)
            for one in sample.segments
            if hasattr(one, "ids")
        }
        asked[described] = {
            question for question in PLAIN.looks(spec.class_noun) if _ids(miniature, question, spec) in texts
        }
    assert asked == {False: set(), True: set(PLAIN.looks(spec.class_noun))}


def _ids(backbone: LoadedBackbone, question: str, spec: ConceptSpec) -> tuple[int, ...]:
    from omnifarm.concept.prompts import user_text

    return user_text(question.format(c=spec.identifier), tokenizer=backbone.tokenizer, rows={spec.identifier: 0}).ids


def test_classes_outside_the_drawn_world_are_asked_nothing() -> None:
    assert PLAIN.looks("spaceship") == ()
