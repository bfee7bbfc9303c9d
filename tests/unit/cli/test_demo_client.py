import pytest

from omnifarm.cli.demo_client import is_right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Yes.", "Yes.", True),
        ("yes", "Yes.", True),
        ("No, it is not. Yes.", "Yes.", False),
        ("I do not know.", "No.", False),
        ("At the beach.", "The beach.", True),
        ("The beachcomber.", "The beach.", False),
        ("Dark red.", "Red.", True),
        ("", "Red.", False),
    ],
)
def test_an_answer_is_right_when_it_says_the_expected_words(answer: str, expected: str, right: bool) -> None:
    assert is_right(answer, expected) is right
