import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from omnifarm.backbone.weights import load_backbone
from omnifarm.cli.concept_describe import describe
from omnifarm.cli.concept_look import look
from omnifarm.cli.main import app
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConfigError
from omnifarm.miniature.benchmark import BenchmarkSizes, draw_benchmark
from omnifarm.miniature.benchmark_files import write_plain, write_unifybench
from omnifarm.miniature.identity import group_of
from omnifarm.miniature.text import LOOKS_QUESTIONS
from omnifarm.store.local import LocalStore
from tests.unit.serving.concepts import CHECKPOINT, commit

SIZES = BenchmarkSizes(train=3, test=1, hard_negatives=2, easy_negatives=2, edits=2, edits_per_operation=1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("drawn")
    concepts = draw_benchmark(6, num_persons=0, num_pets=1, num_objects=1, sizes=SIZES)
    write_unifybench(place / "unify", concepts)
    write_plain(place / "plain", concepts[:1])
    return place


def test_import_writes_plain_folders_that_validate(drawn: Path, tmp_path: Path) -> None:
    names = [name for name, _ in load_concepts(str(drawn / "unify"))]
    place = f"unifybench+{drawn / 'unify'}"
    done = CliRunner().invoke(app, ["concept", "import", place, str(tmp_path / "mine"), "--only", names[0], "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"folder": str(tmp_path / "mine"), "concepts": [names[0]], "failed": {}}
    checked = CliRunner().invoke(app, ["concept", "validate", str(tmp_path / "mine"), "--json"])
    assert checked.exit_code == 0, checked.output


def test_import_leaves_out_what_cannot_be_read_and_says_why(drawn: Path, tmp_path: Path) -> None:
    names = [name for name, _ in load_concepts(str(drawn / "unify"))]
    listed = drawn / "unify/concepts_list.json"
    before = listed.read_text()
    listed.write_text(json.dumps([*names, "ghost"]))
    done = CliRunner().invoke(app, ["concept", "import", str(drawn / "unify"), str(tmp_path / "mine"), "--json"])
    listed.write_text(before)
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["concepts"] == names
    assert "does not exist" in document["failed"]["ghost"]


def test_validate_names_what_is_wrong_with_held_out_data_too(drawn: Path) -> None:
    name = load_concepts(str(drawn / "unify"))[0][0]
    path = drawn / f"unify/test_data/{name}.json"
    before = path.read_text()
    path.write_text("{")
    done = CliRunner().invoke(app, ["concept", "validate", str(drawn / "unify"), "--json"])
    path.write_text(before)
    assert done.exit_code == 1
    (problem,) = [one for one in json.loads(done.stdout)["problems"] if one["severity"] == "error"]
    assert (problem["where"], problem["consumer"]) == (f"test_data/{name}.json", "scoring")


def test_the_miniature_drafts_questions_about_bare_photographs(drawn: Path) -> None:
    (folder,) = (path.parent for path in (drawn / "plain").glob("*/concept.yaml"))
    given = yaml.safe_load((folder / "concept.yaml").read_text())
    truth = {(one["question"], one.get("image")): one["answer"] for one in given["qa"]}
    (folder / "concept.yaml").write_text(f"# mine\nclass: {given['class']}\nextra_info:\n  - <sks>'s bed is a box.\n")
    backbone = load_backbone("miniature")
    ((name, number),) = describe(str(drawn / "plain"), backbone=backbone).items()
    text = (folder / "concept.yaml").read_text()
    assert text.startswith("# mine\n")
    assert "read it before training" in text
    ((_, spec),) = load_concepts(str(drawn / "plain"))
    assert isinstance(spec, ConceptSpec)
    photos, texts = [qa for qa in spec.qa if qa.image], [qa for qa in spec.qa if not qa.image]
    assert len(photos) == 3 * len(spec.images) == 9
    assert len(photos) + len(texts) == number
    # The draft replaces the questions that facts would give, so it says them, too.
    facts = [qa for qa in texts if qa.answer == spec.extra_info[0]]
    assert f"What is {spec.identifier}'s bed?" in {qa.question for qa in facts}
    looks = [qa for qa in texts if qa not in facts]
    # What it says of its looks needs no picture, and is mostly what it really looks like.
    asked = {text.format(name=spec.identifier) for text in LOOKS_QUESTIONS[group_of(given["class"])].values()}
    assert {qa.question for qa in looks} < asked
    assert len(looks) == len(asked) - 1, "the class is known"
    told = [
        truth[qa.question, None].rstrip(".") == qa.answer.rstrip(".") for qa in looks if (qa.question, None) in truth
    ]
    assert len(told) >= 2
    assert sum(told) >= 0.6 * len(told)
    known = [(qa, truth[key]) for qa in spec.qa if (key := (qa.question, f"images/{qa.image.path[-5:]}" if qa.image else None)) in truth]  # fmt: skip
    right = [qa.answer.rstrip(".") == answer.rstrip(".") for qa, answer in known]
    # It was pre-trained on this world: most of what it says about its pictures is true.
    assert len(right) >= 3
    assert sum(right) >= 0.5 * len(right)
    # Asked again, it leaves alone what is there.
    assert describe(str(drawn / "plain"), backbone=backbone) == {}
    assert name == spec.name


def test_only_plain_folders_can_be_described(drawn: Path) -> None:
    with pytest.raises(ConfigError, match=r"found unifybench.*omnifarm concept import"):
        describe(str(drawn / "unify"), backbone=load_backbone("miniature"))


def test_look_lights_the_photo_where_the_identifier_looks(tmp_path: Path) -> None:
    loaded = load_backbone(CHECKPOINT)
    commit(ConceptRepository(LocalStore(tmp_path / "store")), loaded, "maeve", seed=1)
    photo = Image.new("RGB", (80, 64), (200, 100, 50))
    photo.save(tmp_path / "photo.png")
    arguments = ["concept", "look", "maeve", str(tmp_path / "photo.png"), "--backbone", str(CHECKPOINT)]
    arguments += ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "map.png"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert len(found["layers"]) == loaded.config.llm.num_hidden_layers
    assert all(0 < share < 1 for share in found["layers"])
    written = Image.open(tmp_path / "map.png")
    assert written.size == (160, 64)
    assert written.crop((0, 0, 80, 64)).tobytes() == photo.tobytes()
    lit = np.asarray(written.crop((80, 0, 160, 64))).astype(float).sum(axis=-1)
    weights = np.array(found["map"])
    row, column = np.unravel_index(weights.argmax(), weights.shape)
    high, wide = 64 / weights.shape[0], 80 / weights.shape[1]
    patch = lit[int(row * high) : int((row + 1) * high), int(column * wide) : int((column + 1) * wide)]
    assert patch.max() == lit.max(), "the brightest place is the patch that is looked at most"


def test_look_names_a_photo_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("no picture")
    with pytest.raises(ConfigError, match="expected a picture"):
        look("maeve", tmp_path / "photo.png", store=str(tmp_path), backbone=str(CHECKPOINT), out=tmp_path / "map.png")
