from pathlib import Path

import pytest

from omnifarm.concept.datasets.load import open_place
from omnifarm.concept.validate import validate
from omnifarm.errors import ConceptError
from tests.unit.concept.conftest import Photo
from tests.unit.concept.datasets.conftest import Put, load, load_test


@pytest.fixture
def root(tmp_path: Path, photo: Photo, put: Put) -> Path:
    root = tmp_path / "yollava-data"
    for name, first in (("bo", 0), ("nha-tho-hanoi", 20)):
        for index in range(4):
            put(root / f"train/{name}/{index}.png", photo(first + index))
        for index in range(2):
            put(root / f"test/{name}/{index}.png", photo(first + 10 + index))
    put(root / "train/bo/negative_example/eca8f558.png", photo(40))
    scores = [{"image": "eca8f558", "image_path": "/mnt/x/eca8f558.png", "clip_score": 0.6}]
    put(root / "train/bo/negative_example/scores.json", scores)
    put(root / "classes.json", {"bo": "dog", "nha-tho-hanoi": {"class": "church", "info": "<sks> is grey."}})
    return root


def test_the_layout_is_found_and_can_be_named(root: Path) -> None:
    assert open_place(str(root))[0].name == "yollava"
    assert open_place(f"yollava+{root}")[0].name == "yollava"


def test_photographs_and_lookalikes_are_read(root: Path) -> None:
    spec = load(root, "bo")
    assert (spec.class_noun, len(spec.images)) == ("dog", 4)
    assert [(one.kind, one.image.path) for one in spec.negatives] == [
        ("hard", "train/bo/negative_example/eca8f558.png")
    ]


def test_a_name_keeps_its_hyphens_and_an_entry_may_say_more_than_the_class(root: Path) -> None:
    spec = load(root, "nha-tho-hanoi")
    assert (spec.identifier, spec.class_noun, spec.info) == ("<nha-tho-hanoi>", "church", "<nha-tho-hanoi> is grey.")


def test_without_classes_every_concept_says_what_to_write(root: Path) -> None:
    (root / "classes.json").unlink()
    with pytest.raises(ConceptError, match=r'does not say what .bo. is.*\{"bo": "dog"\}'):
        load(root, "bo")
    errors = [problem for problem in validate(str(root)) if problem.severity == "error"]
    assert {problem.concept for problem in errors} == {"bo", "nha-tho-hanoi"}


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ("recognition_positive.json", "recognition_negative-laion.json"),
        ("positive_recognition.json", "negative_recognition-random-imgs.json"),
    ],
)
def test_both_spellings_of_the_recognition_files_are_read(root: Path, put: Put, positive: str, negative: str) -> None:
    folder = root / "training_data/bo"
    # As the published files have it: a path of somebody's tree, two folders up.
    put(folder / positive, {"../data/train/bo/3.png": [{"Human": "Is <bo> here?", "AI": "<bo> is visible."}]})
    image = "/mnt/localssd/yollava-data/train/bo/negative_example/eca8f558.png"
    put(folder / negative, {image: [{"Human": "Is <bo> here?", "AI": "I do not see <bo>."}]})
    found = [(qa.kind, qa.image.path, qa.answer) for qa in load(root, "bo").qa if qa.image]
    assert sorted(found) == [
        ("recognition", "train/bo/3.png", "Yes, <bo> is visible."),
        ("recognition", "train/bo/negative_example/eca8f558.png", "No, I do not see <bo>."),
    ]


def test_text_only_conversations_lose_their_picture(root: Path, put: Put) -> None:
    pairs = {"../data/train/bo/0.png": [{"Human": "What colour is <bo>?", "AI": "<bo> is brown."}]}
    put(root / "training_data/bo/text-only-conversation.json", pairs)
    (qa,) = load(root, "bo").qa
    assert (qa.kind, qa.image) == ("text", None)


def choice(question: str, right: str) -> dict[str, object]:
    return {"question": question, "options": {"A": "Brown", "B": "Grey"}, "correct_answer": right}


@pytest.mark.parametrize("has_names", [True, False])
def test_visual_choices_are_read_with_and_without_a_level_of_names(root: Path, put: Put, has_names: bool) -> None:
    own = {"./yollava-data/test/bo/1.png": choice("What colour is <sks>?", "B")}
    other = {"./yollava-data/test/nha-tho-hanoi/0.png": choice("What is behind <sks>?", "A")}
    put(root / "yollava-visual-qa.json", {"nha-tho-hanoi": other, "bo": own} if has_names else {**other, **own})
    (question,) = [one for one in load_test(root, "bo").questions if one.kind == "choice"]
    assert question.question == "What colour is <bo>?"
    assert (question.answer, question.letter) == ("Grey", "B")
    assert question.image is not None
    assert question.image.path == "test/bo/1.png"


def test_text_choices_name_the_concept_by_a_bare_sks_and_say_option(root: Path, put: Put) -> None:
    entry = {"question": "Is sks a cat?", "option": {"A": "yes", "B": "no"}, "correct_answer": "B"}
    put(root / "yollava-text-qa.json", {"bo": {"0": entry}})
    (question,) = [one for one in load_test(root, "bo").questions if one.kind == "choice"]
    assert (question.question, question.answer, question.image) == ("Is <bo> a cat?", "no", None)


def test_a_file_without_the_concept_holds_no_question_about_it(root: Path, put: Put) -> None:
    put(
        root / "yollava-visual-qa.json",
        {"nha-tho-hanoi": {"./yollava-data/test/nha-tho-hanoi/0.png": choice("Q?", "A")}},
    )
    assert not [one for one in load_test(root, "bo").questions if one.kind == "choice"]


def test_recognition_is_derived_from_test_pictures_of_all_concepts(root: Path) -> None:
    held_out = load_test(root, "bo")
    assert held_out.is_derived
    found = [(one.answer, one.image and one.image.path.split("/")[1]) for one in held_out.questions]
    assert found == [("Yes", "bo")] * 2 + [("No", "nha-tho-hanoi")] * 2
    assert held_out.open_image(held_out.images[0]).size == (40, 32)


def test_a_lookalike_that_is_also_a_test_picture_is_refused(root: Path, put: Put) -> None:
    put(root / "test/bo/7.png", (root / "train/bo/negative_example/eca8f558.png").read_bytes())
    with pytest.raises(ConceptError, match=r"eca8f558.png: has the same pixels as test/bo/7.png, which is held out"):
        load(root, "bo")
