"""What may be told of an answer before it is finished."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from omnifarm.serving.streaming import TextStream

PIECES = st.lists(
    st.sampled_from(["<", "s", "ks", "sks>", "<sks>", " ", "\n", "é", "a", "<think>", "</think>", "\ufffd", "x <s"]),
    max_size=20,
)


def streamed(pieces: Sequence[str], *, spoken: str | None, think: bool) -> tuple[list[str], str | None, str]:
    told: list[str] = []
    stream = TextStream(
        decode=lambda ids: "".join(pieces[index] for index in ids), spoken=spoken, think=think, tell=told.append
    )
    ids = list(range(len(pieces)))
    for end in range(1, len(ids) + 1):
        stream.feed(ids[:end])
    thought, text = stream.finish(ids)
    return told, thought, text


@settings(deadline=None)
@given(PIECES, st.sampled_from(["<maeve>", None]), st.booleans())
def test_the_pieces_joined_are_the_text_whatever_is_written(pieces: list[str], spoken: str | None, think: bool) -> None:
    told, _, text = streamed(pieces, spoken=spoken, think=think)
    assert "".join(told) == text
    assert all(told)
    if spoken is not None:
        assert "<sks>" not in text


def test_a_name_is_told_whole() -> None:
    told, _, text = streamed([" Yes", ",", " <", "s", "ks", ">", " is", "."], spoken="<bo>", think=False)
    assert text == "Yes, <bo> is."
    assert [piece for piece in told if "<" in piece] == [" <bo>"]


def test_a_thought_is_kept_apart() -> None:
    told, thought, text = streamed(["<think>", " hm ", "</think>", " A", " dog."], spoken=None, think=True)
    assert (thought, text) == ("hm", "A dog.")
    assert told == ["A", " dog."]


def test_without_think_tags_everything_is_the_answer() -> None:
    told, thought, text = streamed(["A", " dog."], spoken=None, think=True)
    assert (thought, text, told) == (None, "A dog.", ["A dog."])
