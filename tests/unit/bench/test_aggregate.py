import numpy as np
import pytest

from omnifarm.bench.metrics.aggregate import Cell, ConceptValue, cell_of, mean_of_groups
from omnifarm.bench.metrics.columns import COLUMNS, PAPER_COLUMNS
from omnifarm.bench.published import TABLE_1, TABLE_2


def value(concept: str, number: float | None, *, n: int = 1, failures: int = 0, seed: int = 0) -> ConceptValue:
    return ConceptValue(row="ours", seed=seed, concept=concept, metric="rec", value=number, n=n, failures=failures)


def test_concepts_weigh_the_same_however_many_items_they_have() -> None:
    cell = cell_of([value("a", 1.0, n=9), value("b", 0.0, n=1)])
    assert cell.value == 0.5
    assert (cell.n, cell.num_concepts) == (10, 2)
    assert cell_of([value("a", 1.0, n=9), value("b", 0.0, n=1)], weighted=True).value == pytest.approx(0.9)


def test_seeds_are_averaged_within_a_concept_first() -> None:
    cell = cell_of([value("a", 1.0, seed=0), value("a", 0.0, seed=1), value("b", 0.5)])
    assert (cell.value, cell.low, cell.high) == (0.5, 0.5, 0.5), "no spread between concepts is left"


def test_an_interval_is_that_of_the_mean_over_resampled_concepts() -> None:
    rng = np.random.default_rng(5)
    numbers = rng.normal(0.5, 0.1, 40)
    cell = cell_of([value(str(i), float(number)) for i, number in enumerate(numbers)])
    assert cell.low is not None
    assert cell.high is not None
    half = 1.96 * numbers.std() / np.sqrt(40)
    assert cell.low == pytest.approx(numbers.mean() - half, abs=0.006)
    assert cell.high == pytest.approx(numbers.mean() + half, abs=0.006)


def test_one_concept_has_no_interval_and_nothing_has_a_reason() -> None:
    assert cell_of([value("a", 0.5)]).low is None
    assert cell_of([]).reason == "nothing was asked"
    failed = cell_of([value("a", None, n=0, failures=4)])
    assert (failed.value, failed.failures, failed.reason) == (None, 4, "every item failed")


def test_a_cell_with_many_failures_is_incomplete() -> None:
    assert not Cell(value=0.5, n=95, failures=5).is_incomplete
    assert Cell(value=0.5, n=80, failures=20).is_incomplete


def test_groups_weigh_the_same_and_empty_ones_do_not_count() -> None:
    assert mean_of_groups({"a": [1, 1, 1], "b": [0], "c": []}) == 0.5
    assert mean_of_groups({"c": []}) is None


def test_the_papers_average_is_the_mean_of_its_two_columns() -> None:
    full = [row for table in (TABLE_1, TABLE_2) for row in table.values() if "avg" in row]
    assert len(full) == 12
    for row in full:
        assert row["avg"] == pytest.approx((row["sema_c"] + row["qual_i"]) / 2, abs=0.0011)


def test_the_papers_columns_come_in_its_order() -> None:
    titles = [COLUMNS[key].title for key in PAPER_COLUMNS]
    assert titles[:5] == ["Rec", "VQA BLEU", "VQA GPT", "QA BLEU", "QA GPT"]
    assert titles[5:9] == ["CLIP-I", "CLIP-T", "DINO", "Face-Simi"]
    assert titles[9:] == ["PARG Score", "PARG CLIP-I", "SEMA-C", "QUAL-I", "Avg"]
    ours = TABLE_1["OmniPersona 7B"]
    assert (ours["rec"], ours["face_simi"], ours["avg"]) == (0.852, 0.413, 0.658)
