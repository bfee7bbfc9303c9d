import math

import pytest

from omnifarm.bench.metrics.text import balanced_recall, bleu, is_hit, said, word_bleu

GOLDEN = [
    ("<bo> is a Shiba Inu dog.", "<bo> is a dog.", 0.489542),
    ("A red hat.", "red", 0.096972),
    ("Yes.", "No.", 0.135189),
    ("The man is wearing a blue shirt.", "The man is wearing a blue shirt.", 1.0),
    ("A", "A", 0.501187),
    ("by the sea", "<wangkai>'s home is by the sea.", 0.315634),
    ("abc", "", 0.0),
    ("abc", "xyz", 0.0),
    ("No.", "No, <bo> is not in the photo.", 0.092569),
]


@pytest.mark.parametrize(("reference", "candidate", "score"), GOLDEN)
def test_bleu_is_that_of_the_public_scripts(reference: str, candidate: str, score: float) -> None:
    assert bleu(reference, candidate) == pytest.approx(score, abs=5e-7)


def test_word_bleu_has_no_floor_of_shared_punctuation() -> None:
    assert bleu("Yes.", "No.") > 0.1
    assert word_bleu("Yes.", "No.") == 0
    assert word_bleu("A red hat.", "a red hat") == 1


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes.", True),
        ("No, <bo> is not here, yes?", False),
        ("I do not know him now", None),
        ("", None),
        ("yes it is", True),
        ("Nobody", None),
    ],
)
def test_the_first_standalone_yes_or_no_decides(answer: str, verdict: bool | None) -> None:
    assert said(answer) is verdict


def test_compat_takes_the_letters_no_for_a_no_and_strict_does_not() -> None:
    answer = "Yes, it is <bo> now"
    assert is_hit("No.", answer, protocol="compat")
    assert not is_hit("No.", answer)


def test_recall_is_balanced_over_answers_not_over_items() -> None:
    references = ["Yes.", "No.", "No.", "No."]
    assert balanced_recall(references, ["Yes.", "Yes.", "Yes.", "No."]) == pytest.approx((1 + 1 / 3) / 2)
    assert balanced_recall(references, ["Perhaps"] * 4) == 0
    assert math.isnan(balanced_recall(["Yes."], ["Yes."]))
