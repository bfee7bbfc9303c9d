from pathlib import Path

import pytest

from omnifarm.concept.datasets.load import load_concepts, read_all
from omnifarm.concept.sources import StoreSource, open_source
from omnifarm.concept.spec import ConceptSpec
from omnifarm.concept.validate import validate
from omnifarm.errors import ConceptError
from omnifarm.store.memory import MemoryStore
from tests.unit.concept.conftest import Photo, WriteConcept


def specs_of(url: str) -> dict[str, ConceptSpec]:
    return {name: spec for name, spec in load_concepts(url) if isinstance(spec, ConceptSpec)}


def test_one_bad_concept_fails_alone(tmp_path: Path, write_concept: WriteConcept) -> None:
    write_concept(tmp_path / "good", first=0)
    write_concept(tmp_path / "bad", first=10, yaml="info: no class")
    loaded = dict(load_concepts(str(tmp_path)))
    assert isinstance(loaded["good"], ConceptSpec)
    assert isinstance(loaded["bad"], ConceptError)
    assert "bad/concept.yaml" in str(loaded["bad"])
    assert loaded["bad"].facts["problems"]


def test_a_set_lends_photographs_to_concepts_without_negatives(
    tmp_path: Path, write_concept: WriteConcept, photo: Photo
) -> None:
    write_concept(tmp_path / "a", first=0)
    write_concept(tmp_path / "b", first=10)
    write_concept(tmp_path / "c", first=20, yaml="class: cup\n")
    (tmp_path / "c/negatives").mkdir()
    (tmp_path / "c/negatives/0.png").write_bytes(photo(90))
    specs = specs_of(str(tmp_path))
    assert {(one.kind, one.image.path.split("/")[0]) for one in specs["a"].negatives} == {("hard", "b"), ("easy", "c")}
    assert [one.image.path for one in specs["c"].negatives] == ["c/negatives/0.png"]
    assert specs["a"].open_image(specs["a"].negatives[0].image).size == (40, 32)


def test_negatives_of_a_set_serve_all_its_concepts(tmp_path: Path, write_concept: WriteConcept, photo: Photo) -> None:
    write_concept(tmp_path / "a", first=0)
    write_concept(tmp_path / "b", first=10)
    (tmp_path / "negatives").mkdir()
    (tmp_path / "negatives/0.png").write_bytes(photo(90))
    for spec in specs_of(str(tmp_path)).values():
        assert [(one.kind, one.image.path) for one in spec.negatives] == [("easy", "negatives/0.png")]


def test_two_concepts_of_one_name_are_both_refused(tmp_path: Path, write_concept: WriteConcept) -> None:
    write_concept(tmp_path / "a", first=0, yaml="class: dog\nname: x\n")
    write_concept(tmp_path / "b", first=10, yaml="class: dog\nname: x\n")
    ((name, error),) = load_concepts(str(tmp_path))
    assert name == "x"
    assert isinstance(error, ConceptError)
    assert "used by two folders" in str(error)


def test_photographs_without_a_concept_file_are_explained(tmp_path: Path, photo: Photo) -> None:
    (tmp_path / "0.png").write_bytes(photo(0))
    with pytest.raises(ConceptError, match=r"found 1 photographs but neither a concept.yaml"):
        load_concepts(str(tmp_path))
    (problem,) = validate(str(tmp_path))
    assert problem.severity == "error"
    assert "concept.yaml" in problem.what


@pytest.mark.parametrize("there", ["nothing", "a file"])
def test_a_path_that_is_no_folder_is_explained(tmp_path: Path, there: str) -> None:
    path = tmp_path / "x"
    if there == "a file":
        path.write_text("x")
    with pytest.raises(ConceptError, match=f"found {there}"):
        open_source(str(path))


def test_concepts_of_a_store_are_those_of_the_folder(tmp_path: Path, write_concept: WriteConcept) -> None:
    write_concept(tmp_path / "a", first=0)
    write_concept(tmp_path / "b", first=10)
    store = MemoryStore()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    store.put("a/.hidden/concept.yaml", b"class: dog")
    stored = [one.spec for one in read_all(StoreSource(store, "s3://bucket/set"))]
    local = specs_of(str(tmp_path))
    assert [spec and spec.digest() for spec in stored] == [local[name].digest() for name in ("a", "b")]
    first = stored[0]
    assert first is not None
    assert first.open_image(first.images[0]).size == (40, 32)


def test_a_store_file_is_not_read_beyond_its_limit() -> None:
    store = MemoryStore()
    store.put("a.png", bytes(100))
    source = StoreSource(store)
    with pytest.raises(ConceptError, match="at most 50 are read"):
        source.read("a.png", max_bytes=50)
    with pytest.raises(ConceptError, match=r"b.png: does not exist"):
        source.read("b.png", max_bytes=50)


def test_a_layout_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path, write_concept: WriteConcept) -> None:
    write_concept(tmp_path / "a")
    with pytest.raises(ConceptError, match=r"no layout is called 'yolava': did you mean 'yollava'.*known are mcllava"):
        load_concepts(f"yolava+{tmp_path}")
    assert specs_of(f"plain+{tmp_path}").keys() == {"a"}
    with pytest.raises(ConceptError, match="expected concepts in the layout yollava"):
        load_concepts(f"yollava+{tmp_path}")


def test_a_folder_with_a_plus_sign_is_a_folder(
    tmp_path: Path, write_concept: WriteConcept, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_concept(tmp_path / "c++ notes/a")
    monkeypatch.chdir(tmp_path)
    assert specs_of("c++ notes").keys() == {"a"}


def test_a_set_one_folder_further_down_is_pointed_at(tmp_path: Path, photo: Photo) -> None:
    (tmp_path / "yollava-data/train/bo").mkdir(parents=True)
    (tmp_path / "yollava-data/train/bo/0.png").write_bytes(photo(0))
    with pytest.raises(ConceptError, match=r"yollava-data is a yollava set: give that path"):
        load_concepts(str(tmp_path))
