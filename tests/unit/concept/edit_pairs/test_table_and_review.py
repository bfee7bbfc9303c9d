import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnifarm.concept.edit_pairs.review import apply_decisions, read_decisions, write_page
from omnifarm.concept.edit_pairs.table import Pair, PairState, decide, read_pairs, write_pairs
from omnifarm.errors import ConceptError

PAIR = Pair(
    pair_id="bo-0123", concept="bo", class_noun="dog", source="bo/0.png", source_digest="0" * 64, target="bo/bo-0123.png",
    target_digest="1" * 64, mask="bo/bo-0123_mask.png", instruction="remove <bo>: dog from the photo", locator="contrast",
    segmenter="grabcut", inpainter="patches", seed=3, state=PairState.AUTO_FAIL, reason="the edge shows",
    checks={"seam": 2.75, "change": 80.0},
)  # fmt: skip


def test_a_table_holds_every_field(tmp_path: Path) -> None:
    pairs = [PAIR, replace(PAIR, pair_id="bo-4567", state=PairState.ACCEPTED, reviewer="ana", checks={})]
    write_pairs(tmp_path / "pairs.parquet", pairs)
    assert read_pairs((tmp_path / "pairs.parquet").read_bytes(), where="x") == pairs
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.parquet"]


def test_an_empty_table_can_be_read(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", [])
    assert read_pairs((tmp_path / "pairs.parquet").read_bytes(), where="x") == []


def test_a_file_that_is_no_table_of_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match="x: is no table of edit pairs"):
        read_pairs(b"PAR1 nothing", where="x")
    table = pa.table({"a": [1]}).replace_schema_metadata({"schema_version": "9"})
    pq.write_table(table, tmp_path / "other.parquet")
    with pytest.raises(ConceptError, match="expected version 1 of the table of edit pairs, found 9"):
        read_pairs((tmp_path / "other.parquet").read_bytes(), where="x")


@pytest.mark.parametrize("before", list(PairState))
def test_a_person_may_decide_and_change_their_mind(before: PairState) -> None:
    for after in (PairState.ACCEPTED, PairState.REJECTED):
        decided = decide(replace(PAIR, state=before), state=after, reason="", reviewer="ana")
        assert (decided.state, decided.reviewer) == (after, "ana")
    with pytest.raises(ConceptError, match="can become accepted or rejected, found auto_pass"):
        decide(replace(PAIR, state=before), state=PairState.AUTO_PASS, reason="", reviewer="ana")


def test_only_what_a_person_accepted_is_learned() -> None:
    assert [state for state in PairState if state.is_learned] == [PairState.ACCEPTED]


def save(path: Path, **changes: Any) -> Path:
    values = {"schema_version": 1, "reviewer": "ana", "decisions": {"bo-0123": {"state": "accepted", "reason": "fine"}}}
    path.write_text(json.dumps({**values, **changes}))
    return path


def test_decisions_move_their_pairs_and_unknown_ones_are_told(tmp_path: Path) -> None:
    decisions = {"bo-0123": {"state": "rejected"}, "ghost": {"state": "accepted"}}
    saved = read_decisions(save(tmp_path / "decisions.json", decisions=decisions))
    (pair,), unknown = apply_decisions([PAIR], saved)
    assert (pair.state, pair.reviewer, pair.reason) == (PairState.REJECTED, "ana", "")
    assert unknown == ["ghost"]


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"decisions": {"bo-0123": {"state": "auto_pass"}}},
        {"decisions": {"bo-0123": {}}},
        {"decisions": []},
    ],
)
def test_decisions_in_another_form_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConceptError, match=r"expected decisions saved by review.html"):
        read_decisions(save(tmp_path / "decisions.json", **changes))


def test_the_page_holds_every_pair_and_nothing_of_it_is_markup(tmp_path: Path) -> None:
    write_page(tmp_path, [replace(PAIR, source="</script><b>.png")])
    page = (tmp_path / "review.html").read_text()
    assert "</script><b>" not in page
    assert "__PAIRS__" not in page
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    (pair,) = json.loads(data)
    assert pair["source"] == "</script><b>.png"
    assert pair["checks"] == {"seam": 2.75, "change": 80.0}
    # Reviewed offline, beside photographs that are nobody's business.
    assert "http" not in page.replace("http-equiv", "")
