from pathlib import Path

import pytest

from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.spec import ConceptSpec
from omnifarm.concept.validate import validate
from omnifarm.errors import ConceptError
from tests.unit.concept.conftest import Photo, WriteConcept


def load_one(folder: Path) -> ConceptSpec:
    ((_, spec),) = load_concepts(str(folder))
    if isinstance(spec, ConceptError):
        raise spec
    return spec


def test_a_class_and_photographs_are_enough(tmp_path: Path, write_concept: WriteConcept) -> None:
    spec = load_one(write_concept(tmp_path / "maeve"))
    assert (spec.name, spec.identifier, spec.class_noun) == ("maeve", "<maeve>", "dog")
    assert [image.path for image in spec.images] == [f"images/{i}.png" for i in range(4)]


def test_a_question_may_be_one_of_recognition(tmp_path: Path, write_concept: WriteConcept) -> None:
    entry = "- {question: 'Is <sks> here?', answer: 'Yes, it is.', image: 0.png, kind: recognition}"
    spec = load_one(write_concept(tmp_path / "maeve", yaml=f"class: dog\nqa:\n  {entry}\n"))
    assert [(qa.kind, qa.answer) for qa in spec.qa] == [("recognition", "Yes, it is.")]
    undecided = entry.replace("Yes, it is.", "Perhaps.")
    with pytest.raises(ConceptError, match="an answer that begins with Yes or No"):
        load_one(write_concept(tmp_path / "bo", yaml=f"class: dog\nqa:\n  {undecided}\n"))


def test_a_negative_that_is_held_out_is_refused(tmp_path: Path, write_concept: WriteConcept, photo: Photo) -> None:
    folder = write_concept(tmp_path / "maeve")
    for file in ("negatives/x.png", "test/0.png"):
        (folder / file).parent.mkdir()
        (folder / file).write_bytes(photo(50))
    with pytest.raises(ConceptError, match=r"negatives/x.png: has the same pixels as test/0.png, which is held out"):
        load_one(folder)


def test_photographs_may_lie_beside_the_file_and_sort_by_number(tmp_path: Path, photo: Photo) -> None:
    for index in (10, 9, 2):
        (tmp_path / f"{index}.jpg").write_bytes(photo(index, kind="JPEG"))
    (tmp_path / "2_mask.png").write_bytes(photo(1))
    (tmp_path / "concept.yaml").write_text("class: cup\nname: my_cup\n")
    spec = load_one(tmp_path)
    assert spec.name == "my_cup"
    assert [image.path for image in spec.images] == ["2.jpg", "9.jpg", "10.jpg"]


def test_everything_a_folder_may_hold_is_read(tmp_path: Path, write_concept: WriteConcept, photo: Photo) -> None:
    folder = write_concept(
        tmp_path / "maeve",
        yaml="""
class: dog
group: pet
info: <sks> is a brown dog.
extra_info: ["sks has a red hat.", "<maeve>'s friend is <bo>."]
captions: {0.png: A photo of <sks> at the beach.}
qa:
  - {question: "Where does <sks> live?", answer: At the beach.}
  - {question: "What is <sks> doing?", answer: Sleeping., image: 1.png}
edits:
  - {source: edits/a.png, target: edits/b.png}
  - {source: edits/a.png, target: edits/a.png, instruction: leave <sks> alone}
""",
    )
    for file, seed in (("negatives/x.png", 50), ("negatives/easy/y.png", 51), ("edits/a.png", 52), ("edits/b.png", 53)):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(photo(seed))
    spec = load_one(folder)
    assert spec.info == "<maeve> is a brown dog."
    assert spec.extra_info == ("<maeve> has a red hat.", "<maeve>'s friend is <bo>.")
    assert spec.images[0].caption == "A photo of <maeve> at the beach."
    assert [(qa.kind, qa.question, qa.image and qa.image.path) for qa in spec.qa] == [
        ("text", "Where does <maeve> live?", None),
        ("vqa", "What is <maeve> doing?", "images/1.png"),
    ]
    assert sorted((one.kind, one.image.path) for one in spec.negatives) == [
        ("easy", "negatives/easy/y.png"),
        ("hard", "negatives/x.png"),
    ]
    assert [edit.instruction for edit in spec.edits] == ["remove <maeve>: dog from the photo", "leave <maeve> alone"]
    assert spec.edits[1].source == spec.edits[1].target
    assert spec.open_image(spec.images[0]).size == (40, 32)
    assert validate(str(folder)) == []


@pytest.mark.parametrize(
    ("yaml", "what", "fix"),
    [
        ("klass: dog", "unknown key 'klass'", "did you mean 'class'?"),
        ("class: dog\nzzz: 1", "unknown key 'zzz'", "known keys: captions, class"),
        ("info: a dog", "found no `class`", "class: dog"),
        ("class: [dog]", "class must be text, found a list", "quotes"),
        ("class: dog\ninfo: 7", "info must be text, found 7", "quotes"),
        ("just words", "found a line of text", "class: dog"),
        ("class: dog\n  bad: [", "is not YAML in line", "mend that line"),
        ("class: dog\nname: ../etc", "must be 1 to 64 letters", "rename the folder"),
        ("class: dog\ngroup: pets", "group must be one of person, pet, object", "did you mean 'pet'?"),
        ("class: dog\nextra_info: one fact", "extra_info must be a list", "- "),
        ("class: dog\nqa: [{question: Is it, answer: yes}]", "qa[0].answer must be text, found True", "quotes"),
        ("class: dog\nqa: [{question: Is it}]", "qa[0] must have an answer", "add it"),
        ("class: dog\nqa: [{q: a, answer: b, question: c}]", "qa[0]: unknown key 'q'", "known keys: answer"),
        ("class: dog\nqa: [{question: a, answer: b, image: no.png}]", "qa[0] must name a picture", "file name"),
        ("class: dog\nedits: [{source: 0.png}]", "edits[0].target must name a picture", "file name"),
        ("class: dog\nnegatives: [no.png]", "negatives[0] must name a picture", "file name"),
        ("class: dog\nnegatives: others", "names the folder 'others', which holds no pictures", "folder's name"),
        ("class: dog\nnegatives: [0.png]", "same pixels as images/0.png, which shows the concept", "remove one"),
        ("class: dog\ncaptions: {7.png: A photo.}", "none of the photographs", "name a file of images/"),
        ("!!python/object/apply:os.system ['true']", "is not YAML", "mend"),
        ("class: " + "x" * 5000, "5000 characters", "one sentence"),
    ],
)
def test_every_mistake_is_named_with_what_to_do(
    tmp_path: Path, write_concept: WriteConcept, yaml: str, what: str, fix: str
) -> None:
    folder = write_concept(tmp_path / "maeve", yaml=yaml)
    found = [problem for problem in validate(str(folder)) if problem.severity == "error"]
    assert any(what in problem.what and fix in problem.fix for problem in found), found
    assert all(problem.where and problem.consumer and problem.fix for problem in found)
    with pytest.raises(ConceptError, match="cannot be learned"):
        load_one(folder)


def test_all_problems_are_named_not_only_the_first(tmp_path: Path, write_concept: WriteConcept) -> None:
    folder = write_concept(tmp_path / "maeve", yaml="class: dog\nklass: x\ninfo: 3\nqa: 5\n")
    (folder / "images/1.png").write_bytes(b"nonsense")
    (folder / "images/photo.heic").write_bytes(b"x")
    found = [problem for problem in validate(str(folder)) if problem.severity == "error"]
    assert len(found) == 5


def test_a_folder_without_photographs_is_refused(tmp_path: Path, write_concept: WriteConcept) -> None:
    with pytest.raises(ConceptError, match="holds no usable photograph"):
        load_one(write_concept(tmp_path / "maeve", num_photos=0))


def test_what_is_missing_is_warned_about_with_its_consumer(tmp_path: Path, write_concept: WriteConcept) -> None:
    found = validate(str(write_concept(tmp_path / "maeve", num_photos=2)))
    assert {problem.severity for problem in found} == {"warning"}
    consumers = " ".join(problem.consumer for problem in found)
    for consumer in ("recognition", "editing", "questions about looks", "knowledge replay"):
        assert consumer in consumers


def test_a_picture_of_the_sets_pool_that_is_held_out_is_refused(
    tmp_path: Path, write_concept: WriteConcept, photo: Photo
) -> None:
    folder = write_concept(tmp_path / "maeve")
    write_concept(tmp_path / "bo", first=10)
    for file in (folder / "test/0.png", tmp_path / "negatives/x.png"):
        file.parent.mkdir()
        file.write_bytes(photo(50))
    found = dict(load_concepts(str(tmp_path)))
    assert isinstance(found["bo"], ConceptSpec)
    with pytest.raises(ConceptError, match=r"negatives/x.png: has the same pixels as maeve/test/0.png, which is held"):
        raise found["maeve"]


@pytest.mark.parametrize("value", ["2024-13-45", "9" * 5000])
def test_what_python_cannot_hold_spoils_its_own_concept_only(
    tmp_path: Path, write_concept: WriteConcept, value: str
) -> None:
    write_concept(tmp_path / "maeve", yaml=f"class: dog\ninfo: {value}\n")
    write_concept(tmp_path / "bo", first=10)
    found = dict(load_concepts(str(tmp_path)))
    assert isinstance(found["bo"], ConceptSpec)
    assert isinstance(found["maeve"], ConceptError)


def test_a_photograph_given_twice_counts_once(tmp_path: Path, write_concept: WriteConcept, photo: Photo) -> None:
    folder = write_concept(tmp_path / "maeve")
    (folder / "images/again.png").write_bytes(photo(0))
    assert len(load_one(folder).images) == 4
    assert any("same pixels" in problem.what for problem in validate(str(folder)))


def test_a_held_out_picture_may_not_be_learned_from(tmp_path: Path, write_concept: WriteConcept, photo: Photo) -> None:
    folder = write_concept(tmp_path / "maeve")
    (folder / "test").mkdir()
    (folder / "test/0.png").write_bytes(photo(2))
    with pytest.raises(ConceptError, match=r"images/2.png: has the same pixels as test/0.png, which is held out"):
        load_one(folder)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, write_concept: WriteConcept, photo: Photo) -> None:
    folder = write_concept(tmp_path / "maeve")
    (tmp_path / "elsewhere.png").write_bytes(photo(77))
    (folder / "images/link.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(ConceptError, match=r"images/link.png: leads outside its folder"):
        load_one(folder)


def test_a_changed_picture_is_noticed_when_it_is_opened(
    tmp_path: Path, write_concept: WriteConcept, photo: Photo
) -> None:
    folder = write_concept(tmp_path / "maeve")
    spec = load_one(folder)
    (folder / "images/0.png").write_bytes(photo(99))
    with pytest.raises(ConceptError, match="was changed after the concept was read"):
        spec.open_image(spec.images[0])
