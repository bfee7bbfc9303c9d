from pathlib import Path
from typing import Any

import pytest

from omnifarm.concept.datasets.load import open_place
from tests.unit.concept.conftest import Photo
from tests.unit.concept.datasets.conftest import Put, load

PREFIX = "/mnt/localssd/code/data/yollava-data/train/bo"
SYSTEM = "<reserved16200> is <reserved16201><reserved16202><reserved16203>. "


def entry(image: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "bot", "value": answer}]
    return {"image": [image], "conversations": turns}


@pytest.fixture
def root(tmp_path: Path, photo: Photo, put: Put) -> Path:
    for index in range(4):
        put(tmp_path / f"train/bo/{index}.png", photo(index))
    put(tmp_path / "train/bo/negative_example/a.png", photo(40))
    put(tmp_path / "classes.json", {"bo": "dog"})
    listed = [
        entry(f"{PREFIX}/0.png", f"{SYSTEM}Is <reserved16200> in this photo?<image>", "<reserved16200> is visible."),
        entry(f"{PREFIX}/0.png", f"{SYSTEM}Is <reserved16200> in this photo?<image>", "<reserved16200> is visible."),
        entry(f"{PREFIX}/negative_example/a.png", "Can you see <sks> in this picture?<image>", "There is only a cat."),
        entry(f"{PREFIX}/1.png", "What is <sks> doing?<image>", "Sleeping."),
        entry(f"{PREFIX}/negative_example/a.png", f"{SYSTEM}A photo of <reserved16200>.", "<image>"),
    ]
    put(tmp_path / "json/bo.json", listed)
    return tmp_path


def test_the_layout_is_found_and_can_be_named(root: Path) -> None:
    assert open_place(str(root))[0].name == "yochameleon"
    assert open_place(f"yochameleon+{root}")[0].name == "yochameleon"


def test_a_list_of_conversations_becomes_questions(root: Path) -> None:
    assert [(qa.kind, qa.question, qa.answer) for qa in load(root, "bo").qa] == [
        ("recognition", "Is <bo> in this photo?", "Yes, <bo> is visible."),
        ("recognition", "Can you see <bo> in this picture?", "No, there is only a cat."),
        ("vqa", "What is <bo> doing?", "Sleeping."),
    ]


def test_soft_positives_stay_pictures_without_the_concept(root: Path) -> None:
    spec = load(root, "bo")
    assert [image.path for image in spec.images] == [f"train/bo/{index}.png" for index in range(4)]
    assert [one.image.path for one in spec.negatives] == ["train/bo/negative_example/a.png"]


def test_without_a_list_the_same_pictures_are_a_yollava_set(root: Path) -> None:
    (root / "json/bo.json").unlink()
    assert open_place(str(root))[0].name == "yollava"
