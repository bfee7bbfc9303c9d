import random
import re
from dataclasses import replace

import numpy as np
import pytest

from omnifarm.errors import ConfigError
from omnifarm.miniature.edits import OPERATIONS, idle_removal, removal, sample_edit
from omnifarm.miniature.facts import (
    closed_replay,
    fact_sentences,
    fact_turns,
    replays,
    sample_facts,
    unified_request,
)
from omnifarm.miniature.identity import GROUPS, sample_identity
from omnifarm.miniature.render import render
from omnifarm.miniature.scene import sample_scene
from omnifarm.miniature.text import (
    appearance_turns,
    caption,
    describe,
    looks_turn,
    recognition_turn,
    scene_turns,
)

NAME = "<sks>"


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower())) - {"a", "an", "the", "on", "in", "at", "to"}


def _scenes(number: int):
    rng = random.Random(11)
    for i in range(number):
        who = [sample_identity(rng, group=GROUPS[(i + k) % 3]) for k in range(1 + i % 2)]
        yield rng, sample_scene(rng, who)


def test_a_question_never_says_its_own_answer():
    open_choices = {"class", "glasses"}  # "a man or a woman", "what glasses": the options are in the question
    for _, scene in _scenes(60):
        for index, placed in enumerate(scene.subjects):
            for turn in [*appearance_turns(placed.identity, NAME), *scene_turns(scene, index, NAME)]:
                if turn.topic not in open_choices:
                    assert not _words(turn.answer) & _words(turn.question), turn


def test_a_class_is_not_asked_when_the_name_tells_it():
    who = sample_identity(random.Random(0), noun="cat")
    assert all(turn.topic != "class" for turn in appearance_turns(who, "the cat"))
    assert any(turn.topic == "class" for turn in appearance_turns(who, NAME))


def test_sentences_are_short_and_name_the_subject():
    for rng, scene in _scenes(60):
        for placed in scene.subjects:
            sentence = describe(placed.identity, NAME)
            assert sentence.startswith(f"{NAME} is a")
            assert len(sentence.split()) <= 26
            assert describe(placed.identity, NAME, rng=rng).startswith(f"{NAME} is a")
            assert looks_turn(placed.identity, NAME).answer == sentence


def test_recognition_answers_begin_with_yes_or_no():
    assert recognition_turn(NAME, present=True).question == "Is <sks> in the photo?"
    assert recognition_turn(NAME, present=True).answer == "Yes."
    assert recognition_turn(NAME, present=False, rng=random.Random(0)).answer == "No."


def test_a_caption_names_every_subject_and_the_place():
    for _, scene in _scenes(30):
        names = ["<n1>", "<n2>"][: len(scene.subjects)]
        sentence = caption(scene, names)
        assert all(name in sentence for name in names)
        assert scene.place in sentence
        with pytest.raises(ConfigError, match="names"):
            caption(scene, [*names, "<n3>"])


def test_facts_are_told_asked_and_replayed_consistently():
    facts = sample_facts(random.Random(4))
    told = fact_sentences(facts, NAME)
    for wording in range(3):
        for sentence, turn in zip(told, fact_turns(facts, NAME, wording=wording), strict=True):
            assert NAME in turn.question
            assert _words(turn.answer) <= _words(sentence)
    for one in (*replays(facts, NAME), *replays(facts, NAME, wording=1)):
        assert not _words(one.answer) & _words(one.request)
        assert _words(one.answer) <= _words(one.prompt)
        assert one.exemplar == unified_request(one.request) + one.target
        assert [line.split(":")[0] for line in one.exemplar.splitlines()] == ["Request", "Question", "Answer", "Prompt"]


def test_a_request_that_leaves_nothing_open_is_repeated():
    one = closed_replay("A photo of <sks> in the park.")
    assert one.prompt == one.request
    assert one.question == one.answer == "Nothing."


def test_every_edit_changes_the_picture_and_keeps_the_place_it_does_not_name():
    for number, (rng, scene) in enumerate(_scenes(40)):
        scene = replace(scene, light="day", style="photo")
        edit = sample_edit(rng, scene, 0, NAME, operation=OPERATIONS[number % 5])
        assert edit.operation == OPERATIONS[number % 5]
        assert NAME in edit.instruction
        assert not np.array_equal(render(scene), render(edit.target)), edit.instruction
        if edit.operation != "environment_interaction":
            assert (edit.target.place, edit.target.view) == (scene.place, scene.view)


def test_an_edit_never_turns_a_training_identity_into_a_held_out_one():
    rng = random.Random(9)
    for _ in range(150):
        scene = sample_scene(rng, [sample_identity(rng, "train")])
        target = sample_edit(rng, scene, 0, NAME, operation="attribute_modification").target
        assert target.subjects[0].identity.split == "train"


def test_attribute_edits_end_for_every_held_out_identity():
    rng = random.Random(10)
    for _ in range(100):
        scene = sample_scene(rng, [sample_identity(rng, "heldout")])
        sample_edit(rng, scene, 0, NAME, operation="attribute_modification")


def test_removal_follows_the_wording_of_the_method():
    rng = random.Random(0)
    dog, cat = sample_identity(rng, noun="dog"), sample_identity(rng, noun="cat")
    scene = sample_scene(rng, [dog, cat])
    index = scene.index_of(dog)
    edit = removal(scene, index, NAME)
    assert edit.instruction == "remove <sks>: dog from the photo"
    assert [placed.identity for placed in edit.target.subjects] == [cat]
    assert idle_removal(edit.target, dog, NAME).target == edit.target


def test_an_unknown_operation_is_refused():
    rng = random.Random(0)
    scene = sample_scene(rng, [sample_identity(rng)])
    with pytest.raises(ConfigError, match="sing"):
        sample_edit(rng, scene, 0, NAME, operation="sing")
