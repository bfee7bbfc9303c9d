"""The rules by which other people's JSON is read: spellings, shapes, placeholders (OMNIPBENCH 1.4)."""

from typing import Any

import pytest

from omnifarm.concept.datasets.foreign_json import ANSWER_KEYS, QUESTION_KEYS, Record, records
from omnifarm.concept.spec import normalise_text
from omnifarm.errors import ConceptError

PAIR = {"query": "What is it?", "answer": "A dog."}
EXPECTED = Record(image="bo/0.png", question="What is it?", answer="A dog.")
TURNS = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A dog."}]
OTHER = {"query": "Who?", "answer": "Will."}


@pytest.mark.parametrize("question", ["query", "question", "Human", "human"])
@pytest.mark.parametrize("answer", ["answer", "AI", "gpt", "bot"])
def test_every_spelling_is_read(question: str, answer: str) -> None:
    assert records({"bo/0.png": [{question: "What is it?", answer: "A dog."}]}, concept="bo") == [EXPECTED]
    assert question in QUESTION_KEYS
    assert answer in ANSWER_KEYS


@pytest.mark.parametrize(
    "value",
    [
        {"bo/0.png": [PAIR]},
        {"bo/0.png": PAIR},
        [{"image": "bo/0.png", **PAIR}],
        [{"image_path": "bo/0.png", **PAIR}],
        [{"image": ["bo/0.png"], **PAIR}],
        {"bo": {"bo/0.png": [PAIR]}, "will": {"will/0.png": [OTHER]}},
        {"bo": [{"image": "bo/0.png", **PAIR}], "will": [OTHER]},
        {"bo/0.png": {"0": PAIR}},
        [{"image": "bo/0.png", "conversations": TURNS}],
    ],
    ids=["dict of lists", "dict of dicts", "list of dicts", "image_path", "image in a list", "below names",
         "lists below names", "counted", "LLaVA"],
)  # fmt: skip
def test_every_shape_gives_the_same_question(value: Any) -> None:
    assert records(value, concept="bo", concepts=["bo", "will"]) == [EXPECTED]


def test_a_file_of_other_concepts_alone_holds_nothing_of_this_one() -> None:
    assert records({"will": {"will/0.png": [OTHER]}}, concept="bo", concepts=["bo", "will"]) == []


@pytest.mark.parametrize("value", [{"bo/0.png": ["A dog."]}, [1, 2], {"bo/0.png": {"caption": "A dog."}}])
def test_another_shape_is_refused_with_the_one_to_write(value: Any) -> None:
    with pytest.raises(ConceptError, match="write") as refused:
        records(value, concept="bo")
    assert '"query"' in str(refused.value.facts["fix"])


@pytest.mark.parametrize(
    "text",
    ["Is <sks> here?", "Is sks here?", "Is <maeve_dog> here?", "Is  <maeve>\n here?"],
    ids=["<sks>", "bare sks", "folder", "white space"],
)
def test_every_placeholder_becomes_the_identifier(text: str) -> None:
    assert normalise_text(text, name="maeve", folder="maeve_dog") == "Is <maeve> here?"


def test_words_that_only_contain_a_placeholder_stay() -> None:
    assert normalise_text("She asks <bo> about tasks.", name="maeve") == "She asks <bo> about tasks."
