"""Every quirk of the published files that would go wrong quietly (OmniPBench specification, section 1)."""

from pathlib import Path
from typing import Any

import pytest

from omnifarm.bench.data.load import load_benchmark
from omnifarm.bench.tasks import Sizes
from omnifarm.concept.validate import validate
from omnifarm.errors import ConceptError
from tests.unit.concept.conftest import Photo
from tests.unit.concept.datasets.conftest import Put, load, load_test

SIZES = Sizes(images_per_prompt=1, people_images=1, parg_images=1)


@pytest.fixture
def root(tmp_path: Path, photo: Photo, put: Put) -> Path:
    """One concept with eleven photographs, as UniCTokens' own tree has it: its README's files and those it forgets."""
    root = tmp_path / "unictokens_data"
    train, test = root / "concept/train/maeve_dog", root / "concept/test/maeve_dog"
    for index in range(11):
        put(train / f"{index}.png", photo(index))
    for index in range(2):
        put(test / f"{index}.png", photo(20 + index))
    put(root / "concepts_list.json", ["maeve_dog"])
    put(root / "concept/train/train_images.json", {"maeve_dog": [f"{index}.png" for index in range(11)]})
    put(root / "black_512x512.png", photo(60))
    put(root / "template.json", {"unseen": []})
    put(train / "info.json", info())
    return root


def info(**changes: Any) -> dict[str, Any]:
    return {
        "class": "dog",
        "info": "<maeve_dog> is a small brown dog.",
        "extra_info": ["<maeve_dog> has a red hat."],
        "conversation_type": "animal",
        "generation_type": "live_subject",
    } | changes


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


def test_the_identifier_is_the_folder_and_never_a_display_name(root: Path) -> None:
    spec = load(root, "maeve_dog")
    assert spec.identifier == "<maeve_dog>"
    assert spec.info == "<maeve_dog> is a small brown dog."


def test_a_picture_key_does_not_match_another_picture_that_ends_alike(root: Path, put: Put) -> None:
    pairs = {"0.png": [{"query": "Which?", "answer": "First."}], "10.png": [{"query": "Which?", "answer": "Last."}]}
    put(root / "concept/train/maeve_dog/conversations.json", pairs)
    found = {qa.answer: qa.image.path for qa in load(root, "maeve_dog").qa if qa.image}
    assert found == {"First.": "concept/train/maeve_dog/0.png", "Last.": "concept/train/maeve_dog/10.png"}


def test_a_list_decides_the_order_and_names_every_photograph(root: Path, put: Put) -> None:
    put(root / "concept/train/train_images.json", {"maeve_dog": ["10.png", "2.png"]})
    assert [one.path[-6:] for one in load(root, "maeve_dog").images] == ["10.png", "/2.png"]
    put(root / "concept/train/train_images.json", {"maeve_dog": ["77.png"]})
    with pytest.raises(ConceptError, match=r"77\.png"):
        load(root, "maeve_dog")


def test_without_the_list_numbered_pictures_come_in_their_numbers_order_and_crops_and_masks_stay_out(
    root: Path, put: Put, photo: Photo
) -> None:
    (root / "concept/train/train_images.json").unlink()
    put(root / "concept/train/maeve_dog/0_mask.png", photo(50))
    put(root / "concept/train/maeve_dog/cropped/0.png", photo(51))
    spec = load(root, "maeve_dog")
    assert [one.path.rpartition("/")[2] for one in spec.images] == [f"{index}.png" for index in range(11)]
    assert any("train_images.json" in problem.where for problem in validate(str(root)))


@pytest.mark.parametrize(
    ("fields", "group", "own_prompt"),
    [
        ({"conversation_type": "human"}, "person", "wearing a red hat"),
        ({}, "pet", "wearing a red hat"),
        ({"generation_type": "object"}, "object", "on top of a mirror"),
    ],
)
def test_the_kind_of_generation_decides_the_general_prompts_where_the_kind_of_conversation_says_nothing(
    root: Path, put: Put, fields: dict[str, str], group: str, own_prompt: str
) -> None:
    put(root / "concept/train/maeve_dog/info.json", info(**fields))
    assert load(root, "maeve_dog").group == group
    benchmark = load_benchmark(str(root), sizes=SIZES, scratch=root).benchmark
    pure = [item.text for item in benchmark.items_of("maeve_dog", "pure")]
    assert len(pure) == 25
    assert f"a <maeve_dog> {own_prompt}" in pure
    assert bool(benchmark.items_of("maeve_dog", "people")) == (group == "person")


def test_hard_negatives_lie_in_either_folder_and_their_scores_have_either_name(
    root: Path, put: Put, photo: Photo
) -> None:
    train = root / "concept/train/maeve_dog"
    put(train / "negative_example/4.png", photo(40))
    put(train / "negative_example/score.json", [{"image": "4.png", "clip_score": 0.7}])
    put(train / "negative/5.png", photo(41))
    put(train / "negative/scores.json", [])
    put(root / "random_images/0.png", photo(42))
    assert [one.kind for one in load(root, "maeve_dog").negatives] == ["hard", "hard", "easy"]


def test_recognition_is_negative_only_where_the_answer_says_no(root: Path, put: Put) -> None:
    images = ("concept/test/maeve_dog/0.png", "concept/test/maeve_dog/1.png")
    answers = ("No.", "It is <maeve_dog>.")
    items = [
        {"type": "rec", "image": f"/data/unictokens_data/{image}", "conversations": turns("Is <sks> here?", answer)}
        for image, answer in zip(images, answers, strict=True)
    ]
    put(root / "test_data/maeve_dog.json", items)
    questions = load_test(root, "maeve_dog").questions
    assert [one.answer for one in questions] == ["No", "Yes"]
    assert {one.question for one in questions} == {"Is <maeve_dog> here?"}, "the picture marker is no part of it"


def test_text_only_items_point_at_a_black_picture_that_is_not_shown(root: Path, put: Put) -> None:
    black = {"type": "text_only", "image": "/x/black_512x512.png", "conversations": turns("What has sks?", "A hat.")}
    put(root / "test_data/maeve_dog.json", [black])
    (question,) = load_test(root, "maeve_dog").questions
    assert (question.kind, question.question, question.image) == ("text", "What has <maeve_dog>?", None)


def test_the_newest_stage_is_read_and_its_entries_without_a_picture_are_questions_without_one(
    root: Path, put: Put
) -> None:
    put(root / "showo_training_data_stage_1/maeve_dog.json", [{"conversations": turns("Old?", "Old.")}])
    put(root / "showo_training_data_stage_2/maeve_dog.json", [{"conversations": turns("What has sks?", "A hat.")}])
    assert [(qa.kind, qa.question, qa.image) for qa in load(root, "maeve_dog").qa] == [
        ("text", "What has <maeve_dog>?", None)
    ]


def test_prompts_beside_the_data_replace_the_general_ones_and_must_name_the_concept(root: Path, put: Put) -> None:
    put(root / "prompts_to_eval.json", {"object": ["an <sks>"], "live_subject": ["a <sks> asleep", "a <sks> awake"]})
    benchmark = load_benchmark(str(root), sizes=SIZES, scratch=root).benchmark
    assert [item.text for item in benchmark.items_of("maeve_dog", "pure")] == [
        "a <maeve_dog> asleep", "a <maeve_dog> awake",
    ]  # fmt: skip
    put(root / "prompts_to_eval.json", {"object": ["a cup"], "live_subject": ["a <sks>"]})
    with pytest.raises(ConceptError, match="names <sks>, found 'a cup'"):
        load_benchmark(str(root), sizes=SIZES, scratch=root)
    put(root / "prompts_to_eval.json", ["a <sks>"])
    with pytest.raises(ConceptError, match="expected"):
        load_benchmark(str(root), sizes=SIZES, scratch=root)


def test_knowledge_prompts_are_all_conditions_but_the_first(root: Path, put: Put) -> None:
    put(
        root / "concept/test/maeve_dog/t2i_conditions.json",
        ["A photo of <maeve_dog>.", "<maeve_dog> in its hat.", "<maeve_dog> at home."],
    )
    items = load_benchmark(str(root), sizes=SIZES, scratch=root).benchmark.items_of("maeve_dog", "parg")
    assert [item.text for item in items] == ["<maeve_dog> in its hat.", "<maeve_dog> at home."]


def test_a_held_out_picture_that_cannot_be_read_fails_and_is_never_replaced_by_a_black_one(
    root: Path, put: Put
) -> None:
    put(root / "concept/test/maeve_dog/1.png", b"broken")
    with pytest.raises(ConceptError, match=r"1\.png"):
        load_test(root, "maeve_dog")
