import json
from pathlib import Path

import pytest

from omnifarm.concept.datasets.load import load_held_out, open_place
from omnifarm.concept.validate import validate
from omnifarm.errors import ConceptError
from omnifarm.miniature.benchmark import BenchmarkSizes, draw_benchmark
from omnifarm.miniature.benchmark_files import write_unifybench
from tests.unit.concept.conftest import Photo
from tests.unit.concept.datasets.conftest import Put, load, load_test


@pytest.fixture
def root(tmp_path: Path, photo: Photo, put: Put) -> Path:
    root = tmp_path / "unictokens_data"
    kinds = {"bo": ("dog", "pet"), "mam": ("cat", "pet"), "dunpai": ("shield", "object")}
    for number, (name, (noun, group)) in enumerate(kinds.items()):
        for index in range(4):
            put(root / f"concept/train/{name}/{index}.png", photo(20 * number + index))
        for index in range(2):
            put(root / f"concept/test/{name}/{index}.png", photo(20 * number + 10 + index))
        put(root / f"concept/train/{name}/info.json", {"class": noun, "conversation_type": group})
    put(root / "black_512x512.png", photo(99))
    return root


def item(kind: str, image: str, question: str, answer: str) -> dict[str, object]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"type": kind, "image": f"/home/author/unictokens_data/{image}", "conversations": turns}


def test_typed_test_data_is_read_whole(root: Path, put: Put) -> None:
    items = [
        item("rec", "concept/test/bo/0.png", "Is <bo> here?", "<bo> is."),
        item("rec", "concept/test/mam/0.png", "Is <bo> here?", "No."),
        item("vqa", "concept/test/bo/1.png", "What is <bo> doing?", "Running."),
        item("text_only", "black_512x512.png", "What has <bo>?", "A red hat."),
        item("single_choice", "concept/test/bo/1.png", "A or B?", "A"),
        item("riddle", "concept/test/bo/1.png", "?", "!"),
    ]
    put(root / "test_data/bo.json", items)
    held_out = load_test(root, "bo")
    assert not held_out.is_derived
    assert [(one.kind, one.answer, one.image and one.image.path) for one in held_out.questions] == [
        ("recognition", "Yes", "concept/test/bo/0.png"),
        ("recognition", "No", "concept/test/mam/0.png"),
        ("vqa", "Running.", "concept/test/bo/1.png"),
        ("text", "A red hat.", None),
        ("choice", "A", "concept/test/bo/1.png"),
    ]
    assert held_out.questions[2].question == "What is <bo> doing?"


def test_without_test_data_questions_are_derived_and_that_is_recorded(root: Path, put: Put) -> None:
    put(root / "concept/test/bo/vqa.json", {"0.png": [{"query": "What is <sks>?", "answer": "A dog."}]})
    put(root / "concept/test/bo/text_only.json", [{"question": "What has <bo>?", "answer": "A hat."}])
    held_out = load_test(root, "bo")
    assert held_out.is_derived
    found = [(one.kind, one.answer, one.image and one.image.path.split("/")[2]) for one in held_out.questions]
    # Strangers of the same group come before others.
    assert found == [
        ("recognition", "Yes", "bo"),
        ("recognition", "Yes", "bo"),
        ("recognition", "No", "mam"),
        ("recognition", "No", "mam"),
        ("vqa", "A dog.", "bo"),
        ("text", "A hat.", None),
    ]
    assert load_test(root, "bo").questions == held_out.questions


@pytest.mark.parametrize("key", ["0.png", "bo/0.png", "test/bo/0.png", "/home/author/data/concept/test/bo/0.png"])
def test_a_test_file_means_test_pictures_however_it_names_them(root: Path, put: Put, key: str) -> None:
    put(root / "concept/test/bo/vqa.json", {key: [{"query": "What is <sks>?", "answer": "A dog."}]})
    asked = [one.image and one.image.path for one in load_test(root, "bo").questions if one.kind == "vqa"]
    assert asked == ["concept/test/bo/0.png"]


def test_the_first_condition_is_the_portrait_and_the_others_need_knowledge(root: Path, put: Put) -> None:
    put(root / "concept/test/bo/t2i_conditions.json", ["A photo of <bo>.", "<bo> wears its hat."])
    held_out = load_test(root, "bo")
    assert held_out.portrait_prompt == "A photo of <bo>."
    assert [one.prompt for one in held_out.knowledge_prompts] == ["<bo> wears its hat."]
    assert open_place(str(root))[0].name == "unifybench"


ALIGNED = {
    "personalized_driven_generation": ["<bo> walks.", "<bo> runs.", "<bo> sits."],
    "explicit_personalized_driven_generation": ["<bo> walks by the sea.", "<bo> runs in a shirt.", "<bo> sits on red."],
    "dense_prompt_generation": ["A long prompt."],
}


def test_aligned_conditions_are_unifybench_plus_and_the_last_ones_are_held_out(root: Path, put: Put) -> None:
    put(root / "concept/test/bo/t2i_conditions.json", ALIGNED)
    put(root / "concept/train/bo/info.json", {"class": "dog", "num_testing_info": 2})
    assert open_place(str(root))[0].name == "unifybench++"
    assert open_place(f"unifybench+++{root}")[0].name == "unifybench++"
    held_out = load_test(root, "bo")
    assert [(one.prompt, one.explicit) for one in held_out.knowledge_prompts] == [
        ("<bo> runs.", "<bo> runs in a shirt."),
        ("<bo> sits.", "<bo> sits on red."),
    ]
    assert held_out.dense_prompts == ("A long prompt.",)


def test_lists_of_different_length_cannot_be_paired(root: Path, put: Put) -> None:
    put(root / "concept/test/bo/t2i_conditions.json", {**ALIGNED, "explicit_personalized_driven_generation": ["x"]})
    with pytest.raises(ConceptError, match="as many prompts as personalized_driven_generation, found 1 and 3"):
        load_test(root, "bo")


def test_held_out_edits_name_their_operation(root: Path, put: Put, photo: Photo) -> None:
    folder = root / "omnipbench_edit/test/bo"
    put(folder / "a.png", photo(70))
    lines = [
        {
            "source": "a.png",
            "op": "style_appearance",
            "instruction": "Draw <sks>.",
            "references": ["concept/test/bo/0.png"],
        },
        {"source": "a.png", "op": "singing", "instruction": "Sing."},
    ]
    put(folder / "edits.jsonl", json.dumps(lines[0]).encode())
    (edit,) = load_test(root, "bo").edits
    assert (edit.operation, edit.instruction) == ("style_appearance", "Draw <bo>.")
    assert [one.path for one in edit.references] == ["concept/test/bo/0.png"]
    put(folder / "edits.jsonl", "\n".join(map(json.dumps, lines)).encode())
    with pytest.raises(ConceptError, match=r"edits.jsonl:2: op must be one of .* found 'singing'"):
        load_test(root, "bo")


LEARNED = {
    "a photograph": "concept/train/bo/0.png",
    "an edit's target": "omnipbench_edit/train/bo/b.png",
    "a look-alike": "concept/train/bo/negative_example/0.png",
}


@pytest.fixture
def learned(root: Path, photo: Photo, put: Put) -> Path:
    """The set, with an edit to learn and a look-alike."""
    put(root / LEARNED["a look-alike"], photo(80))
    folder = root / "omnipbench_edit/train/bo"
    put(folder / "a.png", photo(81))
    put(folder / "b.png", photo(82))
    put(folder / "pairs.jsonl", json.dumps({"source": "a.png", "target": "b.png"}).encode())
    return root


@pytest.mark.parametrize("path", LEARNED.values(), ids=LEARNED)
def test_the_source_of_a_scored_edit_may_not_be_learned_from(learned: Path, put: Put, path: str) -> None:
    folder = learned / "omnipbench_edit/test/bo"
    put(folder / "c.png", (learned / path).read_bytes())
    put(folder / "edits.jsonl", json.dumps({"source": "c.png", "op": "style_appearance", "instruction": "."}).encode())
    with pytest.raises(
        ConceptError, match=rf"{path}: has the same pixels as omnipbench_edit/test/bo/c.png, which is held out"
    ):
        load(learned, "bo")
    assert load(learned, "mam").images, "nobody else is refused"


@pytest.mark.parametrize("kind", ["rec", "vqa", "single_choice"])
@pytest.mark.parametrize("what", LEARNED)
def test_what_shows_the_concept_is_not_asked_about_again_but_a_negative_may_be(
    learned: Path, put: Put, what: str, kind: str
) -> None:
    put(learned / "elsewhere/q.png", (learned / LEARNED[what]).read_bytes())
    put(learned / "test_data/bo.json", [item(kind, "elsewhere/q.png", "Is <bo> here? A or B?", "No.")])
    if what == "a look-alike":
        assert len(load(learned, "bo").negatives) == 1
        return
    with pytest.raises(ConceptError, match=rf"{LEARNED[what]}: has the same pixels as elsewhere/q.png"):
        load(learned, "bo")


def test_the_drawn_benchmark_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    sizes = BenchmarkSizes(train=4, test=2, hard_negatives=2, easy_negatives=2, edits=2, edits_per_operation=1)
    concepts = draw_benchmark(3, num_persons=1, num_pets=1, num_objects=0, sizes=sizes)
    write_unifybench(tmp_path / "set", concepts)
    names = [concept.name for concept in concepts]
    assert [name for name, _ in load_held_out(str(tmp_path / "set"))] == sorted(names)
    for name in names:
        held_out = load_test(tmp_path / "set", name)
        assert {one.kind for one in held_out.questions} == {"recognition", "vqa", "text"}
        assert {one.answer for one in held_out.questions if one.kind == "recognition"} == {"Yes", "No"}
        assert held_out.knowledge_prompts
        assert held_out.edits
    assert not [problem for problem in validate(str(tmp_path / "set")) if problem.severity == "error"]
