"""Edit pairs are looked at in a browser: what is decided there is what the job reads back."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from omnifarm.concept.edit_pairs.review import DECISIONS, PAGE, apply_decisions, read_decisions, write_page
from omnifarm.concept.edit_pairs.table import Pair, PairState

pytestmark = pytest.mark.slow


def pair(pair_id: str, state: PairState) -> Pair:
    return Pair(
        pair_id=pair_id, concept="bo", class_noun="dog", source=f"bo/{pair_id}.png", source_digest="0" * 64,
        target=f"bo/{pair_id}_target.png", target_digest="1" * 64, mask=f"bo/{pair_id}_mask.png",
        instruction="remove <bo>: dog from the photo", locator="contrast", segmenter="grabcut", inpainter="patches",
        seed=3, state=state, reason="", checks={"seam": 2.75},
    )  # fmt: skip


def test_pairs_are_accepted_and_rejected_by_click_and_key_and_the_saved_file_is_read_back(
    tmp_path: Path, opened: Callable[..., Page]
) -> None:
    pairs = [pair("bo-1", PairState.AUTO_PASS), pair("bo-2", PairState.AUTO_FAIL), pair("bo-3", PairState.AUTO_PASS)]
    (tmp_path / "previews").mkdir()
    for one in pairs:
        for kind in ("source", "marked", "target"):
            Image.new("RGB", (32, 24), "teal").save(tmp_path / f"previews/{one.pair_id}_{kind}.jpg")
    write_page(tmp_path, pairs)
    page = opened((tmp_path / PAGE).as_uri())
    counts = page.locator("#counts")
    expect(counts).to_have_text("3 pairs: 0 accepted, 0 rejected, 2 passed and 1 failed the check")
    expect(page.get_by_role("img", name="photograph")).to_have_count(3)
    page.get_by_label("your name").fill("ana")
    first, second, third = (page.locator(f"article#{one.pair_id}") for one in pairs)
    first.get_by_role("button", name="Accept").click()
    expect(first.locator(".badge")).to_have_text("accepted")
    second.get_by_role("button", name="Reject").click()
    second.get_by_placeholder("why (optional)").fill("a paw is left")
    # Keys: the third pair is accepted, and that taken back.
    page.locator("h1").click()
    for key in "jjja":
        page.keyboard.press(key)
    expect(third.locator(".badge")).to_have_text("accepted")
    page.keyboard.press("u")
    expect(counts).to_have_text("3 pairs: 1 accepted, 1 rejected, 1 passed and 0 failed the check")
    # What was decided outlives the page.
    page.reload()
    expect(second.get_by_placeholder("why (optional)")).to_have_value("a paw is left")
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save decisions").click()
    assert saving.value.suggested_filename == DECISIONS
    saving.value.save_as(tmp_path / DECISIONS)
    saved = read_decisions(tmp_path / DECISIONS)
    assert saved == {
        "reviewer": "ana",
        "decisions": {
            "bo-1": {"state": "accepted", "reason": ""},
            "bo-2": {"state": "rejected", "reason": "a paw is left"},
        },
    }
    decided, unknown = apply_decisions(pairs, saved)
    assert [one.state for one in decided] == [PairState.ACCEPTED, PairState.REJECTED, PairState.AUTO_PASS]
    assert unknown == []
