from pathlib import Path

import pytest

from omnifarm.concept.datasets.load import load_concepts, load_held_out
from omnifarm.concept.datasets.write_plain import write_plain
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConfigError
from omnifarm.miniature.benchmark import BenchmarkSizes, draw_benchmark
from omnifarm.miniature.benchmark_files import write_unifybench


def specs_of(place: Path) -> list[ConceptSpec]:
    specs = [spec for _, spec in load_concepts(str(place))]
    assert all(isinstance(spec, ConceptSpec) for spec in specs), specs
    return [spec for spec in specs if isinstance(spec, ConceptSpec)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("drawn") / "set"
    sizes = BenchmarkSizes(train=3, test=1, hard_negatives=2, easy_negatives=2, edits=2, edits_per_operation=1)
    write_unifybench(place, draw_benchmark(4, num_persons=1, num_pets=1, num_objects=0, sizes=sizes))
    return place


def test_a_concept_read_back_from_its_plain_folder_is_the_same_concept(drawn: Path, tmp_path: Path) -> None:
    before = specs_of(drawn)
    assert {qa.kind for spec in before for qa in spec.qa} == {"vqa", "text", "recognition"}
    held_out = {name: one for name, one in load_held_out(str(drawn)) if not isinstance(one, Exception)}
    write_plain(tmp_path / "plain", before, held_out=held_out)
    after = specs_of(tmp_path / "plain")
    assert [spec.digest() for spec in after] == [spec.digest() for spec in before]
    assert len(list((tmp_path / "plain").glob("*/test/*.png"))) == sum(len(one.images) for one in held_out.values()) > 0


def test_negatives_of_all_concepts_are_written_once(drawn: Path, tmp_path: Path) -> None:
    specs = specs_of(drawn)
    write_plain(tmp_path / "plain", specs)
    shared = {one.image.digest for one in specs[0].negatives if one.kind == "easy"}
    assert len(list((tmp_path / "plain/negatives").iterdir())) == len(shared) > 0
    assert not list((tmp_path / "plain").glob("*/negatives/easy"))


def test_a_folder_with_something_in_it_is_left_alone(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="to be empty or absent"):
        write_plain(tmp_path, specs_of(drawn))
