from collections import Counter
from dataclasses import replace

import pytest

from omnifarm.bench.data.edits import derived_edits
from omnifarm.bench.data.items import build_benchmark, evenly
from omnifarm.bench.data.load import BenchData, load_benchmark
from omnifarm.bench.data.prompts import PROMPTS
from omnifarm.bench.tasks import OPERATIONS, BenchConcept, Benchmark, Item, Sizes
from omnifarm.errors import ConceptError, ConfigError


def rebuilt(concepts: list[BenchConcept], **sizes: int) -> Benchmark:
    return build_benchmark([(one.spec, one.held_out) for one in concepts], sizes=Sizes(**sizes))


def test_few_concepts_still_hold_every_group(drawn: BenchData) -> None:
    assert {one.spec.group for one in drawn.benchmark.concepts} == {"person", "pet", "object"}


def test_a_benchmark_asks_every_task_and_every_item_has_an_id(drawn: BenchData) -> None:
    for concept in drawn.benchmark.concepts:
        items = drawn.benchmark.items_of(concept.name)
        counts = Counter(item.task for item in items)
        wanted = {"rec", "vqa", "qa", "pure", "parg", "edit"} | (
            {"people"} if concept.spec.group == "person" else set()
        )
        assert set(counts) == wanted
        assert len({item.id for item in items}) == len(items)
        assert all(concept.identifier in item.text for item in items if item.task != "vqa")


def test_recognition_is_balanced_when_it_is_cut(drawn: BenchData) -> None:
    cut = rebuilt(list(drawn.benchmark.concepts), questions=3)
    answers = Counter(item.reference[:2] for item in cut.items_of(cut.concepts[0].name, "rec"))
    assert answers == {"Ye": 2, "No": 1}


def test_the_same_prompt_is_drawn_several_times_from_several_seeds(drawn: BenchData) -> None:
    items = rebuilt(list(drawn.benchmark.concepts), prompts=2, images_per_prompt=4).items_of(
        drawn.benchmark.concepts[1].name, "pure"
    )
    assert len(items) == 8
    assert len({item.seed(0) for item in items}) == 8
    assert {item.seed(0) for item in items}.isdisjoint(item.seed(1) for item in items)


def test_a_seed_depends_on_what_is_asked_and_not_on_its_place() -> None:
    item = Item(id="pure-000-00", task="pure", concept="maeve", text="a <maeve> in the snow", index=1)
    assert item.seed(7) == replace(item, id="pure-009-00").seed(7)
    assert item.seed(7) != replace(item, text="a <maeve> on the beach").seed(7)
    assert item.seed(7) != replace(item, index=2).seed(7)


def test_edits_that_the_data_lacks_are_built_a_fifth_of_each_kind_from_test_pictures(drawn: BenchData) -> None:
    for concept in drawn.benchmark.concepts:
        edits = derived_edits(concept, seed=1)
        assert Counter(edit.operation for edit in edits) == dict.fromkeys(OPERATIONS, 2 * len(concept.held_out.images))
        test = {image.digest for image in concept.held_out.images}
        assert {edit.source.digest for edit in edits} == test
        assert edits == derived_edits(concept, seed=1)
        assert edits != derived_edits(concept, seed=2)
        assert concept.spec.group == "person" or not any("raise a hand" in edit.instruction for edit in edits)


def test_uneven_edits_are_cut_to_the_rarest_kind_and_that_is_said(drawn: BenchData) -> None:
    concept = drawn.benchmark.concepts[0]
    edits = [*concept.held_out.edits, concept.held_out.edits[0]]
    uneven = replace(concept, held_out=replace(concept.held_out, edits=tuple(edits)))
    benchmark = rebuilt([uneven])
    assert set(Counter(item.operation for item in benchmark.items if item.task == "edit").values()) == {1}
    assert any("cut to 1 of each kind" in note for note in benchmark.notes)


def test_what_is_missing_is_said(drawn: BenchData) -> None:
    concept = drawn.benchmark.concepts[2]
    bare = replace(concept, held_out=replace(concept.held_out, knowledge_prompts=(), edits=(), is_derived=True))
    notes = " ".join(rebuilt([bare]).notes)
    assert "no PARG score" in notes
    assert "edits were built from the test pictures, seed" in notes
    assert "recognition questions were built" in notes


def test_the_general_prompts_are_the_twenty_five_of_each_kind() -> None:
    assert {kind: len(set(prompts)) for kind, prompts in PROMPTS.items()} == {"object": 25, "live_subject": 25}
    shared = set(PROMPTS["object"]) & set(PROMPTS["live_subject"])
    assert len(shared) == 15
    assert "a cube shaped <sks>" in shared


def test_the_digest_sees_every_question(drawn: BenchData) -> None:
    items = drawn.benchmark.items
    changed = replace(drawn.benchmark, items=(replace(items[0], text=items[0].text + "!"), *items[1:]))
    assert changed.digest() != drawn.benchmark.digest()


def test_things_are_taken_evenly() -> None:
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly([1, 2], 5) == [1, 2]
    assert evenly([1, 2], None) == [1, 2]


@pytest.mark.parametrize("sizes", [{"concepts": 0}, {"prompts": -1}])
def test_sizes_are_checked(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        Sizes(**sizes)


def test_data_that_cannot_be_scored_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="miniature:SEED"):
        load_benchmark("miniature", sizes=Sizes(), scratch=tmp_path)
    (tmp_path / "note.txt").write_text("nothing")
    with pytest.raises(ConceptError):
        load_benchmark(str(tmp_path), sizes=Sizes(), scratch=tmp_path)
