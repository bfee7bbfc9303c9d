from pathlib import Path

import pytest

from omnifarm.concept.datasets.load import load_concepts, open_place
from omnifarm.concept.validate import validate
from tests.unit.concept.conftest import Photo
from tests.unit.concept.datasets.conftest import Put, load, load_test

TEXT = """Classes

subject_name,class
grey_sloth_plushie,stuffed animal
dog6,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} on the beach'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""


@pytest.fixture
def root(tmp_path: Path, photo: Photo, put: Put) -> Path:
    for number, name in enumerate(("grey_sloth_plushie", "dog6")):
        for index in range(4):
            put(tmp_path / f"{name}/0{index}.jpg", photo(10 * number + index, kind="JPEG"))
    put(tmp_path / "prompts_and_classes.txt", TEXT.encode())
    return tmp_path


def test_classes_come_from_the_text_file(root: Path) -> None:
    assert open_place(str(root))[0].name == "dreambooth"
    assert (load(root, "grey_sloth_plushie").class_noun, load(root, "grey_sloth_plushie").group) == (
        "stuffed animal",
        "object",
    )
    assert (load(root, "dog6").class_noun, load(root, "dog6").group) == ("dog", "pet")


def test_prompts_are_those_of_the_subjects_kind(root: Path) -> None:
    assert load_test(root, "grey_sloth_plushie").plain_prompts == (
        "a <grey_sloth_plushie> on the beach",
        "a red <grey_sloth_plushie>",
    )
    assert load_test(root, "dog6").plain_prompts == ("a <dog6> wearing a red hat",)


def test_subjects_lend_each_other_negatives_but_folders_of_ours_are_no_subjects(
    root: Path, put: Put, photo: Photo
) -> None:
    put(root / "edit_pairs/x.png", photo(80))
    assert [name for name, _ in load_concepts(str(root))] == ["dog6", "grey_sloth_plushie"]
    assert {one.image.path.split("/")[0] for one in load(root, "dog6").negatives} == {"grey_sloth_plushie"}


def test_without_the_text_file_the_named_layout_guesses_the_class_and_says_so(root: Path) -> None:
    (root / "prompts_and_classes.txt").unlink()
    assert load(f"dreambooth+{root}", "dog6").class_noun == "dog"
    assert any("'dog' is assumed" in problem.what for problem in validate(f"dreambooth+{root}"))
