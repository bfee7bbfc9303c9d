import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omnifarm.errors import WeightsError
from omnifarm.miniature.benchmark import draw_benchmark
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.identity import sample_identity
from omnifarm.miniature.judge import (
    SLOT_HEADS,
    SLOTS,
    Judge,
    Reading,
    scene_labels,
    slot_labels,
    spans,
)
from omnifarm.miniature.measures import (
    edit_is_done,
    measure_answers,
    measure_drawings,
    measure_edits,
    measure_removals,
    measure_replay,
    psnr,
    same_answer,
)
from omnifarm.miniature.pretrain.corpus import make_group, render_corpus
from omnifarm.miniature.pretrain.judge_stage import JudgeConfig, judge_accuracy, save_judge, train_judge
from omnifarm.miniature.render import render
from omnifarm.miniature.scene import sample_scene


@pytest.fixture(scope="module")
def concepts():
    return draw_benchmark(3, num_persons=2, num_pets=1, num_objects=1)


class Oracle:
    """Knows every picture that it has drawn itself; stands for a judge without fault."""

    def __init__(self):
        self.scenes = {}

    def render(self, scene):
        picture = render(scene)
        self.scenes[picture.tobytes()] = scene
        return picture

    def read(self, pictures):
        return [Reading.of(self.scenes[picture.tobytes()]) for picture in pictures]


class PerfectSystem:
    def __init__(self, concept, oracle):
        self.concept, self.oracle = concept, oracle
        pairs = [
            (asked.turn.question, asked.photo, asked.turn.answer) for asked in (*concept.test_vqa, *concept.test_qa)
        ]
        self.answers = {
            (question, None if photo is None else render(concept.test[photo]).tobytes()): answer
            for question, photo, answer in pairs
        }
        self.mine = {render(scene).tobytes() for scene in concept.test}

    def ask(self, question, picture):
        key = (question, None if picture is None else picture.tobytes())
        if key in self.answers:
            return self.answers[key]
        return "Yes." if picture.tobytes() in self.mine else "No."

    def draw(self, prompt, *, replay, seed):
        rng = random.Random(seed)
        facts = self.concept.facts
        scene = sample_scene(rng, [self.concept.identity], item=False, light="day", style="photo")
        place = next((p for p in PLACES if p in prompt), None)
        if place:
            scene = replace(scene, place=place)
        if replay and "home" in prompt:
            scene = replace(scene, place=facts.home)
        if replay and ("toy" in prompt or "friend" in prompt):
            scene = replace(scene, item=facts.toy if "toy" in prompt else facts.friend)
        if not replay and place is None:
            scene = replace(scene, place="park" if facts.home != "park" else "city")
        return self.oracle.render(scene)

    def edit(self, picture, instruction, *, seed):
        for case in (*self.concept.test_edits, *self.concept.test_removals):
            if case.edit.instruction == instruction and render(case.source).tobytes() == picture.tobytes():
                return self.oracle.render(case.edit.target)
        raise AssertionError(instruction)


class IdleSystem(PerfectSystem):
    """Answers yes to everything, draws somebody else, changes nothing."""

    def ask(self, question, picture):
        return "Yes."

    def draw(self, prompt, *, replay, seed):
        rng = random.Random(seed)
        other = sample_identity(rng, "train", group="object" if self.concept.identity.group != "object" else "pet")
        return self.oracle.render(sample_scene(rng, [other], place=self.concept.facts.home, item=False))

    def edit(self, picture, instruction, *, seed):
        for case in (*self.concept.test_edits, *self.concept.test_removals):
            if render(case.source).tobytes() == picture.tobytes():
                return self.oracle.render(case.source)
        raise AssertionError(instruction)


def _everything(concept, system, judge):
    values = measure_answers(concept, system)
    values |= measure_drawings(concept, system, judge).values
    values |= measure_replay(concept, system, judge).values
    values |= measure_removals(concept, system, judge, round_trip=lambda picture: picture).values
    return values | measure_edits(concept, system, judge).values


def test_a_perfect_system_gets_full_marks(concepts):
    for concept in concepts:
        oracle = Oracle()
        values = _everything(concept, PerfectSystem(concept, oracle), oracle)
        assert values.pop("parg_no_replay") == 0
        assert values.pop("removal_psnr_gap_db") == 0
        assert values == dict.fromkeys(values, 1.0)


def test_a_system_that_does_nothing_gets_none(concepts):
    for concept in concepts:
        oracle = Oracle()
        values = _everything(concept, IdleSystem(concept, oracle), oracle)
        assert values["rec"] == 0.5
        assert values["gen_identity"] < 0.3
        assert values["removal_right"] == 0
        assert all(value == 0 for name, value in values.items() if name.startswith("edit_"))


def test_an_edit_that_loses_the_identity_does_not_count(concepts):
    concept = next(c for c in concepts if c.identity.group == "person")
    for case in concept.test_edits:
        target = case.edit.target
        if len(target.subjects) < len(case.source.subjects) or not target.subjects:
            continue
        assert edit_is_done(Reading.of(target), case, concept.identity)
        index = case.source.index_of(concept.identity)
        stranger = sample_identity(random.Random(0), "train", group="object")
        lost = target.with_subject(index, replace(target.subjects[index], identity=stranger))
        assert not edit_is_done(Reading.of(lost), case, concept.identity)


def test_answers_are_compared_by_their_words():
    assert same_answer("A red ball.", "a red ball")
    assert same_answer("The beach.", "beach")
    assert not same_answer("A red ball.", "a blue ball")
    assert not same_answer("", "A man.")


def test_psnr_counts_the_mask_alone():
    truth = np.zeros((96, 96, 3), np.uint8)
    picture = truth.copy()
    picture[0, 0] = 255
    mask = np.ones((96, 96), bool)
    mask[0, 0] = False
    assert psnr(picture, truth, mask) == 60
    assert psnr(picture, truth, ~mask) == 0


def test_labels_say_what_a_scene_holds():
    rng = random.Random(4)
    for number in range(3):
        scene = sample_scene(rng, [sample_identity(rng) for _ in range(number)])
        assert scene_labels(scene)["count"] == number
        targets, sizes = slot_labels(scene)
        taken = [slot for slot, target in enumerate(targets) if target["noun"] >= 0]
        assert taken == [[], [0], [1, 2]][number]
        for slot in taken:
            assert 0 < sizes[slot][0] < 1
        assert len(targets) == len(SLOTS)
    assert list(spans("slot")) == list(SLOT_HEADS)


def test_the_judge_is_trained_resumed_saved_and_loaded(tmp_path):
    groups = [make_group(1, index) for index in range(8)]
    render_corpus(tmp_path / "pictures.npy", num_groups=8, seed=1)
    pictures = np.load(tmp_path / "pictures.npy")
    network = train_judge(tmp_path, config=JudgeConfig(budget_s=4, batch_size=8), pictures=pictures, groups=groups)
    save_judge(network, tmp_path)
    judge = Judge.load(tmp_path)
    accuracy = judge_accuracy(judge, pictures=pictures[:2], groups=groups[:2])
    assert 0 <= accuracy["mean"] <= 1
    assert {"place", "noun", "count"} <= set(accuracy)
    # The budget is spent: a repeat trains no further.
    again = train_judge(tmp_path, config=JudgeConfig(budget_s=4, batch_size=8), pictures=pictures, groups=groups)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name])


def test_a_folder_without_a_judge_or_with_another_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="expected the judge"):
        Judge.load(tmp_path)
    save_file({"stem.0.weight": torch.zeros(1)}, str(tmp_path / "judge.safetensors"))
    with pytest.raises(WeightsError, match="does not hold"):
        Judge.load(tmp_path)
