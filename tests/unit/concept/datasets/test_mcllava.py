from pathlib import Path

import pytest

from omnifarm.concept.datasets.load import held_out_problems, open_place
from tests.unit.concept.conftest import Photo
from tests.unit.concept.datasets.conftest import Put, load, load_test


@pytest.fixture
def root(tmp_path: Path, photo: Photo, put: Put) -> Path:
    """Two scenes: Alex and Gloria stand together, ziqiao stands alone."""
    root = tmp_path / "MulBench"
    scenes = {"Alex": "two_concept", "Gloria": "two_concept", "ziqiao": "three_concept"}
    for number, (name, scene) in enumerate(scenes.items()):
        for index in range(4):
            put(root / f"{scene}/concept/train/{name}/{index}.png", photo(20 * number + index))
            put(root / f"{scene}/concept/train/{name}/{index}_mask.png", photo(200 + index))
        put(root / f"{scene}/concept/test/{name}/0.png", photo(20 * number + 10))
    put(root / "two_concept/multi/Alex_Gloria/0.png", photo(90))
    put(root / "random-images/10192.png", photo(91))
    put(root / "scenarios.json", ["Alex_Gloria"])
    put(root / "classes.json", {"Alex": "lion", "Gloria": "hippopotamus", "ziqiao": "woman"})
    return root


def test_the_layout_is_found_and_can_be_named(root: Path) -> None:
    assert open_place(str(root))[0].name == "mcllava"
    assert open_place(f"mcllava+{root}")[0].name == "mcllava"


def test_masks_are_no_photographs(root: Path) -> None:
    spec = load(root, "Alex")
    assert [image.path.rpartition("/")[2] for image in spec.images] == ["0.png", "1.png", "2.png", "3.png"]


def test_who_stands_in_the_same_scene_is_a_hard_negative(root: Path) -> None:
    found = {(one.kind, one.image.path.split("/")[-2]) for one in load(root, "Alex").negatives}
    assert found == {("hard", "Gloria"), ("easy", "random-images")}
    assert {one.kind for one in load(root, "ziqiao").negatives} == {"easy"}


def test_one_folder_of_scenes_is_read_alone(root: Path, put: Put) -> None:
    put(root / "two_concept/classes.json", {"Alex": "lion", "Gloria": "hippopotamus"})
    assert open_place(str(root / "two_concept"))[0].name == "mcllava"
    assert {one.image.path.split("/")[-2] for one in load(root / "two_concept", "Alex").negatives} == {"Gloria"}


def test_conversations_are_read_without_their_picture_and_recognition_with_it(root: Path, put: Put) -> None:
    image = "/workspace/data/MulBench/two_concept/concept/train/Alex/1.png"
    other = "/workspace/data/MulBench/two_concept/concept/train/Gloria/2.png"
    folder = root / "4o_generate_training_data/Alex"
    put(folder / "conversation.json", {image: [{"Human": "What is <Alex>?", "AI": "A lion."}]})
    put(folder / "recognition_positive.json", {image: [{"Human": "Is <Alex> here?", "AI": "Yes."}]})
    put(folder / "recognition_negative_Gloria.json", {other: [{"Human": "Is <Alex> here?", "AI": "No."}]})
    found = {(qa.kind, qa.answer, qa.image and qa.image.path.split("/")[-2]) for qa in load(root, "Alex").qa}
    assert found == {("text", "A lion.", None), ("recognition", "Yes.", "Alex"), ("recognition", "No.", "Gloria")}


def test_test_questions_are_single_pairs_or_lists_and_qa_is_textual(root: Path, put: Put) -> None:
    folder = root / "two_concept/concept/test/Alex"
    put(
        folder / "vqa.json",
        {"/workspace/two_concept/concept/test/Alex/0.png": {"Human": "What is <Alex> doing?", "AI": "Dancing."}},
    )
    put(folder / "choice.json", {"0.png": [{"Human": "A or B?", "AI": "A"}, {"Human": "C or D?", "AI": "D"}]})
    put(folder / "qa.json", {"0.png": {"Human": "What does <Alex> like?", "AI": "Steak."}})
    held_out = load_test(root, "Alex")
    found = [(one.kind, one.answer, one.image is not None) for one in held_out.questions if one.kind != "recognition"]
    assert found == [("vqa", "Dancing.", True), ("choice", "A", True), ("choice", "D", True), ("text", "Steak.", False)]


def test_derived_recognition_asks_about_who_stands_together_first(root: Path) -> None:
    answers = [(one.answer, one.image and one.image.path.split("/")[-2]) for one in load_test(root, "Alex").questions]
    assert answers == [("Yes", "Alex"), ("No", "Gloria")]


def test_questions_about_several_concepts_at_once_are_left_out_and_said_so(root: Path, put: Put) -> None:
    put(root / "two_concept/multi/Alex_Gloria/vqa.json", {"0.png": [{"Human": "Who is left?", "AI": "<Alex>."}]})
    said = {name: [one.where for one in problems] for name, problems in held_out_problems(str(root)).items()}
    where = ["two_concept/multi/Alex_Gloria/vqa.json"]
    assert said == {"Alex": where, "Gloria": where, "ziqiao": []}
