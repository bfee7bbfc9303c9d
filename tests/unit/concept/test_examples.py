from collections import Counter
from dataclasses import replace

import pytest

from omnifarm.concept.examples import Example, ExampleSampler, text_questions
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import unknown_looks
from omnifarm.concept.spec import QA, ConceptImage, ConceptSpec, EditPair, Negative
from omnifarm.concept.templates import GENERAL, PLAIN, fact_questions
from omnifarm.errors import ConceptError


def picture(name: str) -> ConceptImage:
    return ConceptImage(path=f"{name}.png", digest=name * 8, size=(32, 32))


SPEC = ConceptSpec(
    name="bo",
    class_noun="dog",
    images=tuple(picture(f"p{i}") for i in range(5)),
    info="<bo> is a Shiba Inu.",
    extra_info=("<bo> has a red hat.", "<bo>'s home is by the sea."),
    qa=(QA(question="What is <bo> doing?", answer="Running.", image=picture("p1"), kind="vqa"),),
    negatives=(
        Negative(image=picture("hard"), kind="hard"),
        *(Negative(image=picture(f"easy{i}"), kind="easy") for i in range(9)),
    ),
    edits=(EditPair(source=picture("s"), target=picture("t"), instruction="remove <bo>: dog from the photo"),),
)
RECIPE = TrainingRecipe(batch_size=8)


def drawn(spec: ConceptSpec = SPEC, *, steps: int = 60, recipe: TrainingRecipe = RECIPE) -> list[Example]:
    sampler = ExampleSampler(spec, recipe=recipe)
    return [example for step in range(steps) for example in sampler.draw(step)]


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    forward = ExampleSampler(SPEC, recipe=RECIPE)
    steps = [forward.draw(step) for step in range(20)]
    assert ExampleSampler(SPEC, recipe=RECIPE).draw(13) == steps[13]
    assert forward.draw(3) == steps[3]


def test_another_seed_draws_other_examples() -> None:
    sampler = ExampleSampler(SPEC, recipe=RECIPE)
    assert any(sampler.draw(step) != sampler.draw(step, seed=1) for step in range(5))


def test_the_mix_of_tasks_is_the_recipes() -> None:
    counts = Counter(example.task for example in drawn(steps=30))
    assert counts == {"understanding": 80, "generation": 80, "editing": 80}


def test_recognition_is_balanced_and_hard_negatives_come_as_often_as_easy_ones() -> None:
    asked = [example for example in drawn() if example.kind.startswith("recognition")]
    answers = Counter(example.kind for example in asked)
    assert abs(answers["recognition_yes"] - answers["recognition_no"]) <= 1
    absent = Counter(e.image.path.startswith("hard") for e in asked if e.kind == "recognition_no" and e.image)
    assert abs(absent[True] - absent[False]) <= 1


def test_recognition_answers_begin_with_yes_or_no_and_words_never_tell_which() -> None:
    asked = [example for example in drawn(steps=200) if example.kind.startswith("recognition")]
    assert all(example.answer.startswith(("Yes", "No")) for example in asked)
    by_kind = {kind: {e.prompt for e in asked if e.kind == kind} for kind in ("recognition_yes", "recognition_no")}
    assert by_kind["recognition_yes"] == by_kind["recognition_no"]
    assert len(by_kind["recognition_yes"]) == len(GENERAL.recognition)


@pytest.mark.parametrize("templates", [GENERAL, PLAIN])
def test_every_template_keeps_the_rule(templates: object) -> None:
    for one in templates.recognition:  # type: ignore[attr-defined]
        assert one.yes.startswith("Yes")
        assert one.no.startswith("No")
        assert "{c}" in one.question


def test_nothing_is_forgotten() -> None:
    examples = drawn()
    assert {e.target.path for e in examples if e.kind == "caption" and e.target} == {f"p{i}.png" for i in range(5)}
    texts = {example.prompt for example in examples if example.kind == "text"}
    assert {"What does <bo> look like?", "What does <bo> have?", "Where is <bo>'s home?"} <= texts


def test_given_text_questions_replace_generated_ones() -> None:
    spec = replace(SPEC, qa=(QA(question="Who is <bo>?", answer="A dog."),))
    assert {e.prompt for e in drawn(spec) if e.kind == "text"} == {"Who is <bo>?"}


def test_what_the_backbone_saw_joins_what_is_asked_without_a_picture() -> None:
    seen = (("What color is <bo>?", "Brown."),)
    sampler = ExampleSampler(SPEC, recipe=RECIPE, looks=seen)
    texts = {(e.prompt, e.answer) for step in range(60) for e in sampler.draw(step) if e.kind == "text"}
    assert {*seen, *text_questions(SPEC)} == texts


def test_only_looks_that_the_concept_says_nothing_about_are_asked() -> None:
    assert unknown_looks(SPEC, templates=GENERAL) == [], "its own description says what it looks like"
    bare = replace(SPEC, info="")
    assert unknown_looks(bare, templates=GENERAL) == ["What does {c} look like?"]
    told = replace(bare, qa=(QA(question="What does <bo> look like?", answer="Brown."),))
    assert unknown_looks(told, templates=GENERAL) == []


def test_recognition_questions_of_the_data_are_asked() -> None:
    given = QA(question="Is <bo> there?", answer="No, <bo> is not.", image=picture("hard"), kind="recognition")
    spec = replace(SPEC, qa=(given,))
    assert any(e.prompt == "Is <bo> there?" and e.kind == "recognition_no" for e in drawn(spec))


def test_captions_of_photographs_are_used() -> None:
    spec = replace(SPEC, images=(replace(SPEC.images[0], caption="<bo> at the sea."), SPEC.images[1]))
    assert {e.prompt for e in drawn(spec) if e.kind == "caption"} == {"<bo> at the sea.", "A photo of <bo>."}


def test_without_negatives_recognition_is_not_asked() -> None:
    assert not any(e.kind.startswith("recognition") for e in drawn(replace(SPEC, negatives=())))


def test_tasks_without_data_give_their_share_to_the_others() -> None:
    counts = Counter(example.task for example in drawn(replace(SPEC, edits=()), steps=30))
    assert counts == {"understanding": 120, "generation": 120}


def test_a_recipe_that_leaves_nothing_is_refused() -> None:
    recipe = TrainingRecipe(share_understanding=0.0, share_generation=0.0, share_editing=1.0)
    with pytest.raises(ConceptError, match="has nothing to learn from under this recipe"):
        ExampleSampler(replace(SPEC, edits=()), recipe=recipe)


@pytest.mark.parametrize(
    ("fact", "question"),
    [
        ("<bo>'s toy is a ball.", "What is <bo>'s toy?"),
        ("<bo>'s resting spot is on a carpet.", "Where is <bo>'s resting spot?"),
        ("The toy of <bo> is a ball.", "What is the toy of <bo>?"),
        ("<bo> has a red hat.", "What does <bo> have?"),
        ("<bo> lives by the sea.", "Where does <bo> live?"),
        ("<bo> wears lapel pins.", "What does <bo> wear?"),
    ],
)
def test_facts_of_common_forms_are_asked_about(fact: str, question: str) -> None:
    assert question in fact_questions(fact, identifier="<bo>")


def test_facts_of_other_forms_are_left_to_the_general_questions() -> None:
    assert fact_questions("Everybody knows <bo>.", identifier="<bo>") == ()


@pytest.mark.parametrize("extra", [0, 10])
def test_photos_are_recognised_alike_however_many_questions_each_has(extra: int) -> None:
    first = SPEC.images[0]
    asked_of_all = [QA(question="What is it?", answer="This.", image=photo, kind="vqa") for photo in SPEC.images]
    more = [QA(question=f"What is {i}?", answer="That.", image=first, kind="vqa") for i in range(extra)]
    recipe = TrainingRecipe(batch_size=12, share_understanding=1.0, share_generation=0.0, share_editing=0.0)
    sampler = ExampleSampler(replace(SPEC, qa=(*asked_of_all, *more)), recipe=recipe)
    examples = [one for step in range(60) for one in sampler.draw(step)]
    seen = Counter(one.image.path for one in examples if one.kind == "recognition_yes" and one.image)
    assert set(seen) == {photo.path for photo in SPEC.images}
    assert max(seen.values()) <= 2 * min(seen.values()), seen


def test_a_photo_that_is_asked_about_is_recognised_in_the_same_step() -> None:
    asked_of_all = tuple(
        QA(question=f"What is {i}?", answer="This.", image=photo, kind="vqa") for i, photo in enumerate(SPEC.images)
    )
    seen_in_data = tuple(
        QA(question="Seen here?", answer="Yes.", image=photo, kind="recognition") for photo in SPEC.images[:3]
    )
    spec = replace(SPEC, qa=(*asked_of_all, *seen_in_data))
    recipe = TrainingRecipe(batch_size=12, share_understanding=1.0, share_generation=0.0, share_editing=0.0)
    sampler = ExampleSampler(spec, recipe=recipe)
    seen: Counter[str] = Counter()
    words: Counter[bool] = Counter()
    for step in range(40):
        examples = sampler.draw(step)
        words.update(one.prompt == "Seen here?" for one in examples if one.kind == "recognition_yes")
        asked = {one.image.path for one in examples if one.kind == "vqa" and one.image}
        present = [one.image.path for one in examples if one.kind == "recognition_yes" and one.image]
        assert set(present) <= asked
        seen.update(present)
    assert set(seen) == {photo.path for photo in SPEC.images}
    assert max(seen.values()) <= 2 * min(seen.values())
    # Of eight questions in the pool three came with the data.
    assert 0.2 < words[True] / words.total() < 0.5
