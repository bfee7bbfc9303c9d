import random

import numpy as np
import pytest
import torch

from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.miniature.identity import LABELS, labels, sample_identity
from omnifarm.miniature.pretrain import corpus
from omnifarm.miniature.pretrain.architecture import write_configs
from omnifarm.miniature.pretrain.corpus import make_group
from omnifarm.miniature.pretrain.curriculum import Curriculum
from omnifarm.miniature.pretrain.sequences import Writer
from omnifarm.miniature.pretrain.tasks import Features, Sampler, matches
from omnifarm.miniature.pretrain.understanding_stage import MatchHeads
from omnifarm.miniature.scene import sample_scene

GROUPS = 300


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniature")
    write_configs(folder, codec=None)
    # Which picture is asked about can be read off its features.
    vit = torch.arange(GROUPS)[:, None, None, None] * 100.0 + torch.arange(corpus.NUM_VIEWS)[:, None, None]
    return Sampler(
        groups=[make_group(3, index) for index in range(GROUPS)],
        features=Features(vit=vit.expand(-1, -1, 64, -1)),
        writer=Writer(BackboneTokenizer.from_folder(folder)),
        seed=1,
    )


def person(rng, **values):
    return sample_identity(rng, "train", noun="man").replace(**values)


def test_matches_are_those_of_the_subject_that_is_most_alike():
    rng = random.Random(0)
    first = person(rng, shirt_color="red", beard="none", glasses="round")
    near = first.replace(glasses="dark")
    far = first.replace(shirt_color="blue", beard="beard")
    scene = sample_scene(rng, [far, near])
    told = ("noun", "person.shirt_color", "person.glasses")
    found = {head: value for head, value in zip(LABELS, matches(first, scene, told=told), strict=True) if value >= 0}
    # `far` agrees in class and glasses, `near` in class and shirt; the first of two equals counts.
    assert found["noun"] == 1
    assert sum(found.values()) == 2
    told = ("noun", "person.shirt_color", "person.beard")
    found = {head: value for head, value in zip(LABELS, matches(first, scene, told=told), strict=True) if value >= 0}
    assert found == dict.fromkeys(told, 1.0)


def test_nothing_matches_in_a_picture_of_nobody():
    rng = random.Random(0)
    first = person(rng)
    scene = sample_scene(rng, [first]).without(0)
    assert {value for value in matches(first, scene, told=("noun", "person.hair_color")) if value >= 0} == {0.0}


@pytest.mark.parametrize("share_partial", [0.0, 1.0])
def test_answers_say_whether_everything_that_was_told_is_there(sampler, share_partial):
    yes = sampler.writer.encode("Yes")[0]
    answers, pairs = [], {True: [], False: []}
    for _ in range(400):
        compared = sampler.comparisons(4, share_partial=share_partial)
        assert all(one.segments[0] is compared[0].segments[0] for one in compared)
        for one in compared:
            *_, picture, _, answer = one.segments
            said = answer.ids[0] == yes
            told = [value for value in one.matches if value >= 0]
            assert len(told) == len(one.told)
            # Everything is told of A alone: somebody else may agree in all that is told, never in everything.
            assert said == all(told)
            place, view = divmod(round(float(picture.features[0, 0])), 100)
            pairs[said].append(len(sampler.groups[place].scenes[view].subjects) == 2)
            answers.append(said)
    assert np.mean(answers) == pytest.approx(0.5, abs=0.05)
    assert np.mean(pairs[True]) == pytest.approx(np.mean(pairs[False]), abs=0.12)


def test_few_attributes_are_told_by_as_many_vectors(sampler):
    rows = sampler.writer.rows
    first = sampler.groups[0].first
    some = [head for head, value in labels(first).items() if value >= 0][:3]
    assert len(rows.of_identity(first, expert="und", told=some)) == 3
    assert set(rows.of_identity(first, expert="und", told=some)) < set(rows.of_identity(first, expert="und"))


def test_one_attribute_is_told_until_it_is_known():
    curriculum, rng = Curriculum(), random.Random(0)
    for _ in range(40):
        curriculum.note(("noun", "person.beard"), 0.5)
    told = [curriculum.told(rng, "person") for _ in range(200)]
    assert all(len(heads) == 2 for heads in told)
    assert np.mean([heads[1] == "person.beard" for heads in told]) > 0.6
    for _ in range(200):
        curriculum.note(("noun", "person.beard"), 0.01)
    told = [curriculum.told(rng, "person") for _ in range(200)]
    assert 0.1 < np.mean(["person.beard" in heads for heads in told]) < 0.5


def test_questions_about_several_attributes_say_nothing_about_one():
    curriculum = Curriculum()
    before = dict(curriculum.loss)
    curriculum.note(("noun", "pet.coat", "pet.ears"), 0.0)
    assert curriculum.loss == before


def test_heads_learn_what_was_told_and_nothing_of_the_rest():
    heads = MatchHeads(8)
    hidden = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    agree = torch.full((4, len(LABELS)), -1.0)
    agree[:, 2] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    loss = heads.loss(hidden, agree)
    assert loss.item() == pytest.approx(np.log(2), abs=1e-6)
    loss.backward()
    moved = heads.linear.weight.grad.abs().sum(dim=1) > 0
    assert moved.nonzero().flatten().tolist() == [2]
