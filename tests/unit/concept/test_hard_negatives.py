import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from omnifarm.backbone.weights import load_backbone
from omnifarm.cli.concept_negatives import backbone_embedding
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.examples import ExampleSampler
from omnifarm.concept.hard_negatives import FILE, mine_hard_negatives, to_json
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.spec import ConceptImage, ConceptSpec
from omnifarm.errors import ConceptError
from omnifarm.miniature.benchmark import write_concept_folders
from tests.unit.concept.conftest import Photo, WriteConcept


def specs_of(place: Path) -> dict[str, ConceptSpec]:
    found = {}
    for name, spec in load_concepts(str(place)):
        assert isinstance(spec, ConceptSpec), spec
        found[name] = spec
    return found


def by_angle(angles: dict[str, float]):
    """An embedding that places each picture, by file, at an angle on a circle."""

    def embed(spec: ConceptSpec, image: ConceptImage) -> np.ndarray:
        angle = np.deg2rad(angles[image.path])
        return np.array([np.cos(angle), np.sin(angle)], np.float32)

    return embed


@pytest.fixture
def place(tmp_path: Path, write_concept: WriteConcept, photo: Photo) -> Path:
    write_concept(tmp_path / "a", first=0, num_photos=2)
    write_concept(tmp_path / "b", first=10, num_photos=2)
    (tmp_path / "negatives").mkdir()
    for index in range(4):
        (tmp_path / f"negatives/{index}.png").write_bytes(photo(50 + index))
    return tmp_path


ANGLES = {
    "a/images/0.png": 0.0, "a/images/1.png": 10.0, "b/images/0.png": 60.0, "b/images/1.png": 200.0,
    "negatives/0.png": 300.0, "negatives/1.png": 150.0, "negatives/2.png": 12.0, "negatives/3.png": 240.0,
}  # fmt: skip


def test_the_nearest_come_first_and_what_may_be_the_concept_itself_is_left_out(place: Path) -> None:
    specs = specs_of(place)
    found = mine_hard_negatives(specs["a"], [specs["b"]], embed=by_angle(ANGLES), keep=3)
    # 12 degrees lies nearer to a photograph (10) than the photographs to each other.
    assert [one.image.path for one in found.suspects] == ["negatives/2.png"]
    assert [one.image.path for one in found.hard][:2] == ["b/images/0.png", "negatives/0.png"]
    values = [one.similarity for one in found.hard]
    assert values == sorted(values, reverse=True)


def test_without_any_other_picture_there_is_nothing_to_rank(tmp_path: Path, write_concept: WriteConcept) -> None:
    write_concept(tmp_path / "a")
    (spec,) = specs_of(tmp_path).values()
    with pytest.raises(ConceptError, match="has no pictures to rank: put pictures without it into negatives/"):
        mine_hard_negatives(spec, [], embed=by_angle({}), keep=3)


def test_what_was_found_becomes_hard_negatives_and_gets_half_of_the_noes(place: Path) -> None:
    specs = specs_of(place)
    assert {one.kind for one in specs["a"].negatives} == {"easy"}
    found = mine_hard_negatives(specs["a"], [specs["b"]], embed=by_angle(ANGLES), keep=1)
    (place / FILE).write_text(json.dumps(to_json({"a": found}, embedding="angles")))
    spec = specs_of(place)["a"]
    assert [one.image.path for one in spec.negatives if one.kind == "hard"] == ["b/images/0.png"]
    assert len(spec.negatives) == 5
    recipe = TrainingRecipe(share_understanding=1.0, share_generation=0.0, share_editing=0.0)
    sampler = ExampleSampler(spec, recipe=recipe)
    noes = [one for step in range(8) for one in sampler.draw(step) if one.kind == "recognition_no"]
    shown = [one.image is not None and one.image.path == "b/images/0.png" for one in noes]
    assert sum(shown) == len(noes) // 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            '{"schema_version": 1, "concepts": {"a": [{"path": "x.png", "digest": "0"}]}}',
            "'x.png', which does not exist",
        ),
        ('{"schema_version": 1, "concepts": {"a": [{"path": "b/images/0.png", "digest": "0"}]}}', "was changed since"),
        ('{"schema_version": 2, "concepts": {}}', "does not hold hard negatives of version 1"),
        ("{", "is not JSON"),
    ],
)
def test_a_list_that_no_longer_fits_is_refused(place: Path, content: str, what: str) -> None:
    (place / FILE).write_text(content)
    error = dict(load_concepts(str(place)))["a"]
    assert isinstance(error, ConceptError)
    assert what in str(error)


def test_the_miniatures_own_vision_finds_lookalikes(tmp_path: Path) -> None:
    """Of drawn sets' negatives, the lookalikes of a concept's class come before the rest more often than by chance.

    It tells identities apart rather than classes, so single concepts may fall below chance.
    """
    embed = backbone_embedding(load_backbone("miniature"))
    shares = []
    for seed in (5, 6):
        place = tmp_path / str(seed)
        write_concept_folders(place, seed=seed, num_persons=0, num_pets=2, num_objects=2)
        for spec in specs_of(place).values():
            lookalikes = {one.image.digest for one in spec.negatives if one.kind == "hard"}
            found = mine_hard_negatives(spec, [], embed=embed, keep=len(lookalikes))
            hits = sum(one.image.digest in lookalikes for one in found.hard) / max(len(found.hard), 1)
            shares.append(hits - len(lookalikes) / len(spec.negatives))
    assert fmean(shares) > 0.02
