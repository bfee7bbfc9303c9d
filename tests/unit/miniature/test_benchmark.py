import json

import pytest
import yaml
from PIL import Image

from omnifarm.errors import ConfigError
from omnifarm.miniature.benchmark import BenchmarkSizes, draw_benchmark, recognition_cases, write_concept_folders
from omnifarm.miniature.benchmark_files import write_unifybench
from omnifarm.miniature.edits import OPERATIONS

SMALL = BenchmarkSizes(train=4, test=2, hard_negatives=3, easy_negatives=2, edits=4, edits_per_operation=1)


@pytest.fixture(scope="module")
def concepts():
    return draw_benchmark(7, num_persons=2, num_pets=1, num_objects=1, sizes=SMALL)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    names = write_concept_folders(root, seed=7, num_persons=1, num_pets=1, num_objects=0)
    return root, names


def test_the_same_seed_draws_the_same_set_and_a_larger_set_begins_with_it(concepts):
    again = draw_benchmark(7, num_persons=3, num_pets=1, num_objects=1, sizes=SMALL)
    assert again[:2] == concepts[:2]
    assert again[3:] == concepts[2:]
    assert draw_benchmark(8, num_persons=1, num_pets=0, num_objects=0)[0].identity != concepts[0].identity


def test_names_and_identities_are_all_different():
    drawn = draw_benchmark(1, num_persons=10, num_pets=14, num_objects=0, sizes=SMALL)
    assert len({concept.name for concept in drawn}) == len({concept.identity for concept in drawn}) == 24


def test_facts_are_never_visible_in_the_photos_that_are_learned_from(concepts):
    for concept in concepts:
        kinds = {concept.facts.toy.kind, concept.facts.friend.kind}
        for scene in (*concept.train, *(case.source for case in concept.train_edits)):
            assert scene.place != concept.facts.home
            assert scene.item is None or scene.item.kind not in kinds


def test_photos_show_the_concept_and_negatives_do_not(concepts):
    for concept in concepts:
        assert all(scene.index_of(concept.identity) is not None for scene in (*concept.train, *concept.test))
        others = (*concept.hard_negatives, *concept.easy_negatives, *concept.strangers)
        assert all(scene.index_of(concept.identity) is None for scene in others)
        for scene in concept.hard_negatives:
            assert concept.identity.noun in {placed.identity.noun for placed in scene.subjects}
        answers = [turn.answer for _, turn in recognition_cases(concept)]
        assert answers.count("Yes.") == answers.count("No.") == len(concept.test)


def test_held_out_questions_are_not_among_the_questions_learned_from(concepts):
    for concept in concepts:
        learned = {asked.turn.question for asked in concept.train_qa}
        assert not learned & {asked.turn.question for asked in concept.test_qa}


def test_edits_cover_all_operations_and_include_pairs_that_change_nothing(concepts):
    for concept in concepts:
        assert {case.edit.operation for case in concept.test_edits} == set(OPERATIONS)
        idle = [case for case in concept.train_edits if case.source == case.edit.target]
        assert len(idle) == 1


def test_a_plain_folder_holds_what_its_yaml_names(plain):
    root, names = plain
    for name in names:
        folder = root / name
        document = yaml.safe_load((folder / "concept.yaml").read_text())
        assert document["name"] == name
        assert len(list((folder / "images").glob("*.png"))) == 10
        assert len(document["extra_info"]) == 3
        assert all(f"<{name}>" in sentence for sentence in (document["info"], *document["extra_info"]))
        for edit in document["edits"]:
            assert (folder / edit["source"]).is_file()
            assert (folder / edit["target"]).is_file()
        for qa in document["qa"]:
            assert "image" not in qa or (folder / qa["image"]).is_file()
        trials = json.loads((folder / "trials.json").read_text())
        for entry in (*trials["questions"], *trials["edits"]):
            for key in ("image", "source", "target"):
                assert entry.get(key) is None or (folder / entry[key]).is_file()
        assert {entry["kind"] for entry in trials["questions"]} == {"recognition", "vqa", "fact"}


def test_no_test_picture_is_learned_from(plain):
    root, names = plain
    for name in names:
        learned = {Image.open(path).tobytes() for path in (root / name).glob("images/*.png")}
        learned |= {Image.open(path).tobytes() for path in (root / name).glob("edits/*.png")}
        held = {Image.open(path).tobytes() for path in (root / name).glob("test/?.png")}
        assert len(held) == 5
        assert not learned & held


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="empty"):
        write_concept_folders(tmp_path, num_persons=1, num_pets=0, num_objects=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_unifybench_layout_is_complete(tmp_path, concepts):
    write_unifybench(tmp_path, concepts)
    names = json.loads((tmp_path / "concepts_list.json").read_text())
    assert names == [concept.name for concept in concepts]
    for concept in concepts:
        train, test = tmp_path / "concept/train" / concept.name, tmp_path / "concept/test" / concept.name
        for file in ("info.json", "conversations.json", "positive_recognitions.json", "negative_example/score.json"):
            assert (train / file).is_file(), file
        conditions = json.loads((test / "t2i_conditions.json").read_text())
        assert conditions[0] == f"A photo of <{concept.name}>."
        assert len(conditions) == 7
        items = json.loads((tmp_path / f"test_data/{concept.name}.json").read_text())
        assert {item["type"] for item in items} == {"rec", "vqa", "text_only"}
        assert all((tmp_path / item["image"]).is_file() for item in items)
        edits = (tmp_path / f"omnipbench_edit/test/{concept.name}/edits.jsonl").read_text().splitlines()
        assert [json.loads(line)["op"] for line in edits] == list(OPERATIONS)


def test_both_layouts_load_as_concepts_without_complaint(tmp_path, plain, concepts):
    load = pytest.importorskip("omnifarm.concept.datasets.load")
    write_unifybench(tmp_path / "unify", concepts)
    for root, number in ((plain[0], 2), (tmp_path / "unify", len(concepts))):
        loaded = load.load_concepts(str(root))
        assert len(loaded) == number
        for name, spec in loaded:
            assert not isinstance(spec, Exception), f"{name}: {spec}"
            assert spec.edits
            assert spec.qa
