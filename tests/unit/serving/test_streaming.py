"""What may be told of an answer before it is finished."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from omnifarm.serving.events import TextPiece, ThoughtPiece
from omnifarm.serving.streaming import TextStream, ThoughtStream

PIECES = st.lists(
    st.sampled_from(["<", "s", "ks", "sks>", "<sks>", " ", "\n", "é", "a", "<think>", "</think>", "\ufffd", "x <s"]),
    max_size=20,
)


Piece = TextPiece | ThoughtPiece


def streamed(pieces: Sequence[str], *, spoken: str | None, think: bool) -> tuple[list[Piece], str | None, str]:
    told: list[Piece] = []
    stream = TextStream(
        decode=lambda ids: "".join(pieces[index] for index in ids), spoken=spoken, think=think, tell=told.append
    )
    ids = list(range(len(pieces)))
    for end in range(1, len(ids) + 1):
        stream.feed(ids[:end])
    thought, text = stream.finish(ids)
    return told, thought, text


def texts(told: Sequence[Piece], kind: type[Piece]) -> list[str]:
    return [piece.text for piece in told if isinstance(piece, kind)]


@settings(deadline=None)
@given(PIECES, st.sampled_from(["<maeve>", None]), st.booleans())
def test_the_pieces_joined_are_the_text_whatever_is_written(pieces: list[str], spoken: str | None, think: bool) -> None:
    told, thought, text = streamed(pieces, spoken=spoken, think=think)
    assert "".join(texts(told, TextPiece)) == text
    assert "".join(texts(told, ThoughtPiece)) == (thought or "")
    assert all(piece.text for piece in told)
    assert [type(piece) for piece in told] == sorted(
        (type(piece) for piece in told), key=lambda kind: kind is TextPiece
    )
    if spoken is not None:
        assert "<sks>" not in text


def test_a_name_is_told_whole() -> None:
    told, _, text = streamed([" Yes", ",", " <", "s", "ks", ">", " is", "."], spoken="<bo>", think=False)
    assert text == "Yes, <bo> is."
    assert [piece for piece in texts(told, TextPiece) if "<" in piece] == [" <bo>"]


def test_a_thought_is_told_apart_while_it_is_written() -> None:
    pieces = ["<thi", "nk>", " hm", ", a", " dog", "</", "think", ">", " A", " dog."]
    told, thought, text = streamed(pieces, spoken=None, think=True)
    assert (thought, text) == ("hm, a dog", "A dog.")
    assert texts(told, ThoughtPiece) == ["hm", ", a", " dog"]
    assert texts(told, TextPiece) == ["A", " dog."]


def test_a_thought_that_never_opened_is_told_when_it_is_known_to_be_one() -> None:
    told, thought, text = streamed(["hm", " hm ", "</think>", " A", " dog."], spoken=None, think=True)
    assert (thought, text) == ("hm hm", "A dog.")
    assert texts(told, ThoughtPiece) == ["hm hm"]


def test_who_is_cut_off_while_thinking_has_not_answered() -> None:
    told, thought, text = streamed(["<think>", " hm", " hm", "</"], spoken=None, think=True)
    assert (thought, text) == ("hm hm</", "")
    assert texts(told, ThoughtPiece) == ["hm", " hm", "</"]


def test_without_think_tags_everything_is_the_answer() -> None:
    told, thought, text = streamed(["A", " dog."], spoken=None, think=True)
    assert (thought, text, told) == (None, "A dog.", [TextPiece(text="A dog.")])


@settings(deadline=None)
@given(PIECES)
def test_before_a_drawing_everything_is_thought(pieces: list[str]) -> None:
    told: list[Piece] = []
    stream = ThoughtStream(decode=lambda ids: "".join(pieces[index] for index in ids), tell=told.append)
    ids = list(range(len(pieces)))
    for end in range(1, len(ids) + 1):
        stream.feed(ids[:end])
    assert "".join(pieces).startswith("".join(piece.text for piece in told))
    assert stream.finish(ids) == "".join(pieces) == "".join(piece.text for piece in told)
