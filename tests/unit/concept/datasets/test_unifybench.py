import json
from pathlib import Path
from typing import Any

import pytest

from omnifarm.concept.datasets.foreign_json import ForeignPaths, records
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.spec import ConceptSpec
from omnifarm.concept.validate import validate
from omnifarm.errors import ConceptError
from tests.unit.concept.conftest import Photo


def put(path: Path, content: bytes | Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.fixture
def root(tmp_path: Path, photo: Photo) -> Path:
    """Two concepts; the second has only what it must have."""
    root = tmp_path / "unictokens_data"
    put(root / "concepts_list.json", ["bo", "wangkai"])
    put(root / "concept/train/train_images.json", {"bo": ["1.png", "0.png"]})
    for name, first in (("bo", 0), ("wangkai", 20)):
        for index in range(5):
            put(root / f"concept/train/{name}/{index}.png", photo(first + index))
            put(root / f"concept/test/{name}/{index}.png", photo(first + 10 + index))
        put(root / f"concept/train/{name}/0_mask.png", photo(70))
        put(root / f"concept/train/{name}/cropped/0.png", photo(71))
    train = root / "concept/train/bo"
    put(train / "negative_example/3.png", photo(40))
    put(train / "negative_example/score.json", [])
    put(root / "random_images/0.png", photo(41))
    info = {
        "class": "dog",
        "info": "<bo> is a Shiba Inu.",
        "extra_info": ["<bo> has a red hat."],
        "conversation_type": "other",
    }
    put(train / "info.json", info)
    put(root / "concept/train/wangkai/info.json", {"class": "man", "conversation_type": "human"})
    return root


def load(root: Path, name: str = "bo") -> ConceptSpec:
    spec = dict(load_concepts(str(root)))[name]
    if isinstance(spec, ConceptError):
        raise spec
    return spec


def test_a_concept_is_read_whole(root: Path) -> None:
    spec = load(root)
    assert (spec.identifier, spec.class_noun, spec.info) == ("<bo>", "dog", "<bo> is a Shiba Inu.")
    assert spec.extra_info == ("<bo> has a red hat.",)
    assert [image.path for image in spec.images] == ["concept/train/bo/1.png", "concept/train/bo/0.png"]
    assert [(one.kind, one.image.path) for one in spec.negatives] == [
        ("hard", "concept/train/bo/negative_example/3.png"),
        ("easy", "random_images/0.png"),
    ]


def test_without_a_list_the_numbered_pictures_are_taken_and_that_is_said(root: Path) -> None:
    spec = load(root, "wangkai")
    assert [image.path for image in spec.images] == [f"concept/train/wangkai/{i}.png" for i in range(5)]
    assert spec.group == "person"
    assert any("does not list 'wangkai'" in problem.what for problem in validate(str(root)))


def test_questions_find_their_pictures_on_any_machine(root: Path) -> None:
    put(
        root / "concept/train/bo/conversations.json",
        {
            "0.png": [{"query": "<image>\nWhat is <sks> doing?", "answer": "Running."}],
            "/home/me/unictokens_data/concept/train/bo/1.png": [{"Human": "Where is sks?", "AI": "Here."}],
            "D:\\sets\\concept\\train\\bo\\2.png": {"question": "Who?", "gpt": "<bo>."},
            "black_512x512.png": [{"query": "What does <bo> like?", "answer": "Hats."}],
        },
    )
    found = [(qa.kind, qa.question, qa.image and qa.image.path[-5:]) for qa in load(root).qa]
    assert found == [
        ("vqa", "What is <bo> doing?", "0.png"),
        ("vqa", "Where is <bo>?", "1.png"),
        ("vqa", "Who?", "2.png"),
        ("text", "What does <bo> like?", None),
    ]


def test_recognition_answers_begin_with_yes_or_no(root: Path) -> None:
    folder = root / "concept/train/bo"
    put(
        folder / "positive_recognitions.json",
        [
            {"image": "0.png", "query": "Is it?", "answer": "<sks> is visible."},
            {"image": "1.png", "query": "Is it?", "answer": "yes."},
        ],
    )
    put(
        folder / "random_recognitions.json",
        [
            {
                "image": ["random_images/0.png"],
                "conversations": [
                    {"from": "human", "value": "Is it?<image>"},
                    {"from": "bot", "value": "There is nobody."},
                ],
            }
        ],
    )
    assert [(qa.kind, qa.answer) for qa in load(root).qa] == [
        ("recognition", "Yes, <bo> is visible."),
        ("recognition", "Yes."),
        ("recognition", "No, there is nobody."),
    ]


def test_a_picture_that_is_both_learned_and_held_out_is_refused(root: Path) -> None:
    put(root / "concept/test/bo/9.png", (root / "concept/train/bo/0.png").read_bytes())
    with pytest.raises(
        ConceptError, match=r"train/bo/0.png: has the same pixels as concept/test/bo/9.png, which is held out"
    ):
        load(root)


def test_edit_pairs_that_passed_their_check_are_learned(root: Path, photo: Photo) -> None:
    folder = root / "omnipbench_edit/train/bo"
    put(folder / "a.png", photo(60))
    put(folder / "b.png", photo(61))
    lines = [
        {"source": "a.png", "target": "b.png", "qc": {"status": "auto_pass"}},
        {"source": "a.png", "target": "b.png", "qc": {"status": "rejected"}},
    ]
    put(folder / "pairs.jsonl", "\n".join(map(json.dumps, lines)).encode())
    (edit,) = load(root).edits
    assert edit.instruction == "remove <bo>: dog from the photo"


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("info.json", {"info": "x"}, "with a `class`"),
        ("info.json", b"{", "is not JSON"),
        ("0.png", b"broken", "expected a PNG, JPEG or WebP"),
        ("conversations.json", {"7.png": [{"query": "a", "answer": "b"}]}, "'7.png', which does not exist"),
        ("conversations.json", {"0.png": 3}, "no question and answer in a known shape"),
    ],
)
def test_a_damaged_file_fails_its_concept_alone(root: Path, file: str, content: Any, what: str) -> None:
    put(root / "concept/train/bo" / file, content)
    with pytest.raises(ConceptError) as caught:
        load(root)
    assert what in str(caught.value)
    assert load(root, "wangkai").class_noun == "man"


def test_a_listed_concept_without_a_folder_is_named(root: Path) -> None:
    put(root / "concepts_list.json", ["bo", "ghost"])
    with pytest.raises(ConceptError, match=r"ghost: is listed in concepts_list.json but does not exist"):
        load(root, "ghost")


def test_a_bare_file_name_never_reaches_another_concept() -> None:
    paths = ["concept/train/bo/0.png", "concept/train/will/0.png", "concept/train/will/5.png", "random_images/0.png"]
    foreign = ForeignPaths(paths, folder="concept/train/bo", roots=("concept", "concept/train"))
    assert foreign.resolve("0.png") == "concept/train/bo/0.png"
    assert foreign.resolve("5.png") is None
    assert foreign.resolve("/home/x/0.png") is None
    assert foreign.resolve("../will/0.png") is None
    assert foreign.resolve("../../train/will/0.png") == "concept/train/will/0.png"
    assert foreign.resolve("/data/random_images/0.png") == "random_images/0.png"
    assert foreign.resolve("/data/train/will/5.png") == "concept/train/will/5.png"


def test_questions_of_the_derived_files_are_read_where_a_concept_has_no_others(root: Path) -> None:
    def turns(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]

    items = [
        {"image": "/home/a/unictokens_data/concept/train/bo/0.png", "conversations": turns("Is <bo> here?", "Yes.")},
        {"image": "/home/a/unictokens_data/random_images/0.png", "conversations": turns("Is <bo> here?", "No.")},
        {"image": "/home/a/unictokens_data/black_512x512.png", "conversations": turns("What has <bo>?", "A hat.")},
    ]
    put(root / "showo_training_data_stage_3/bo.json", items)
    assert [(qa.kind, qa.answer) for qa in load(root).qa] == [
        ("recognition", "Yes."),
        ("recognition", "No."),
        ("text", "A hat."),
    ]


def test_multiple_choice_files_below_concept_names_are_read() -> None:
    pair = {"question": "Q?", "options": {"A": "red", "B": "blue"}, "correct_answer": "B"}
    found = records({"bo": {"0.png": pair}, "will": {"0.png": pair}}, concept="bo")
    assert [(one.image, one.answer) for one in found] == [("0.png", "blue")]
