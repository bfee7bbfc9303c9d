import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.concept.prompts import name_in_reply, system_prompt, system_prompts, target_text, user_text
from omnifarm.concept.soft_tokens import SoftTokenLayout
from omnifarm.errors import ConfigError
from tests.unit.concept.conftest import CHECKPOINT

LAYOUT = SoftTokenLayout(num_und=3, num_gen=2)
TOKENIZER = BackboneTokenizer.from_folder(CHECKPOINT)


def spelled(segment, tokenizer: BackboneTokenizer) -> str:  # type: ignore[no-untyped-def]
    """The text of a segment, slots written as [row:expert]."""
    slots = {slot.offset: f"[{slot.row}{slot.expert[0]}]" for slot in segment.soft}
    return "".join(slots.get(i) or tokenizer.decode([one]) for i, one in enumerate(segment.ids))


def test_the_system_prompt_routes_every_soft_token(tokenizer: BackboneTokenizer) -> None:
    segment = system_prompt(LAYOUT, tokenizer=tokenizer)
    assert spelled(segment, tokenizer) == "[0u] is [1u][2u][3u] [4g][5g]."
    assert not segment.has_loss


def test_a_coupled_layout_routes_all_through_understanding(tokenizer: BackboneTokenizer) -> None:
    segment = system_prompt(SoftTokenLayout(num_und=1, num_gen=2, is_coupled=True), tokenizer=tokenizer)
    assert {slot.expert for slot in segment.soft} == {"und"}


def test_a_layout_of_one_kind_has_no_gap(tokenizer: BackboneTokenizer) -> None:
    segment = system_prompt(SoftTokenLayout(num_und=0, num_gen=2), tokenizer=tokenizer)
    assert spelled(segment, tokenizer) == "[0u] is [1g][2g]."


def test_several_concepts_stand_one_after_the_other_in_the_table(tokenizer: BackboneTokenizer) -> None:
    first, second = system_prompts([LAYOUT, LAYOUT], tokenizer=tokenizer)
    assert [slot.row for slot in first.soft] == list(range(6))
    assert [slot.row for slot in second.soft] == list(range(6, 12))


def test_names_in_user_text_become_their_own_vectors(tokenizer: BackboneTokenizer) -> None:
    segment = user_text("Is <bo> with <maeve> or <will>?", tokenizer=tokenizer, rows={"<maeve>": 0, "<bo>": 6})
    assert spelled(segment, tokenizer) == "Is [6u] with [0u] or <will>?"


def test_the_placeholder_means_the_only_concept(tokenizer: BackboneTokenizer) -> None:
    assert spelled(user_text("A <sks>.", tokenizer=tokenizer, rows={"<bo>": 0}), tokenizer) == "A [0u]."
    both = user_text("A <sks>.", tokenizer=tokenizer, rows={"<bo>": 0, "<maeve>": 6})
    assert both.soft == ()


def test_user_text_cannot_bring_special_tokens(tokenizer: BackboneTokenizer) -> None:
    ids = tokenizer.special_ids
    segment = user_text("<|im_end|><bo><|im_start|><|vision_start|>", tokenizer=tokenizer, rows={"<bo>": 0})
    assert not {ids.im_start, ids.im_end, ids.vision_start, ids.vision_end} & set(segment.ids)
    assert len(segment.soft) == 1


@given(st.text(max_size=40), st.text(max_size=40))
def test_only_listed_names_ever_become_slots(before: str, after: str) -> None:
    segment = user_text(before + "<und_1>" + after, tokenizer=TOKENIZER, rows={"<bo>": 0, "<maeve>": 3})
    text = before + "<und_1>" + after
    assert len(segment.soft) == text.count("<bo>") + text.count("<maeve>")


def test_target_text_spells_the_name_and_has_loss(tokenizer: BackboneTokenizer) -> None:
    segment = target_text("Yes, <bo> is.", tokenizer=tokenizer, identifiers=["<bo>"])
    assert (tokenizer.decode(segment.ids), segment.has_loss, segment.soft) == ("Yes, <sks> is.", True, ())


def test_an_empty_target_is_refused(tokenizer: BackboneTokenizer) -> None:
    with pytest.raises(ConfigError, match="must not be empty"):
        target_text("", tokenizer=tokenizer, identifiers=[])


def test_replies_name_the_concept_again() -> None:
    assert name_in_reply("<sks> runs.", identifiers=["<bo>"]) == "<bo> runs."
    assert name_in_reply("<sks> runs.", identifiers=["<bo>", "<maeve>"]) == "<sks> runs."
