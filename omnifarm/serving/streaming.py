"""Text while it is being written: what can already be told without having to take it back."""

from collections.abc import Callable, Sequence

from omnifarm.serving.events import TextPiece, ThoughtPiece
from omnifarm.serving.replay import WRITTEN_IDENTIFIER

_THOUGHT_END = "</think>"
_THOUGHT_START = "<think>"
_UNFINISHED = "\ufffd"
"""What a character decodes to whose last byte is still to come."""


class _Growing:
    """A text that is told as it grows."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._num_told = tell, 0

    def grow(self, text: str) -> None:
        """Tell what `text` holds beyond what was told; it begins with that."""
        if len(text) > self._num_told:
            self._tell(text[self._num_told :])
            self._num_told = len(text)


class TextStream:
    """Tells an answer piece by piece; the pieces joined are the whole answer, and so are those of its thought.

    Args:
        decode: Generated ids to text.
        spoken: Identifier that `<sks>` in the answer stands for; None leaves it as it is.
        think: Whether a thought comes first. Without its opening tag it is told when its closing one comes: until
            then it could be the answer.
        tell: Called with every piece.
    """

    def __init__(
        self,
        *,
        decode: Callable[[Sequence[int]], str],
        spoken: str | None,
        think: bool,
        tell: Callable[[TextPiece | ThoughtPiece], None],
    ) -> None:
        self._decode, self._spoken, self._think = decode, spoken, think
        self._text = _Growing(lambda text: tell(TextPiece(text=text)))
        self._thought = _Growing(lambda text: tell(ThoughtPiece(text=text)))

    def feed(self, ids: Sequence[int]) -> None:
        """Take all ids written so far and tell what is certain."""
        written = self._decode(ids)
        if not self._think or _THOUGHT_END in written:
            thought, text = self._finished(written)
            self._thought.grow(thought or "")
            self._text.grow(_certain(text, marker=WRITTEN_IDENTIFIER))
        elif _begins_with_thought(written):
            self._thought.grow(_certain(split_thought(written)[0] or "", marker=_THOUGHT_END))

    def finish(self, ids: Sequence[int]) -> tuple[str | None, str]:
        """Tell the rest; return thought and text."""
        thought, text = self._finished(self._decode(ids))
        self._thought.grow(thought or "")
        self._text.grow(text)
        return thought, text

    def _finished(self, written: str) -> tuple[str | None, str]:
        thought, text = split_thought(written) if self._think else (None, written)
        if self._spoken is not None:
            text = text.replace(WRITTEN_IDENTIFIER, self._spoken)
        return thought, text.strip()


class ThoughtStream:
    """Tells what is thought before drawing, tags included: all of it is thought, and all of it is read again.

    Args:
        decode: Generated ids to text.
        tell: Called with every piece.
    """

    def __init__(self, *, decode: Callable[[Sequence[int]], str], tell: Callable[[ThoughtPiece], None]) -> None:
        self._decode = decode
        self._thought = _Growing(lambda text: tell(ThoughtPiece(text=text)))

    def feed(self, ids: Sequence[int]) -> None:
        """Take all ids written so far and tell what is certain."""
        self._thought.grow(self._decode(ids).rstrip(_UNFINISHED))

    def finish(self, ids: Sequence[int]) -> str:
        """Tell the rest; return the thought."""
        thought = self._decode(ids)
        self._thought.grow(thought)
        return thought


def split_thought(written: str) -> tuple[str | None, str]:
    """Return what stands inside think tags, or None, and what comes after: nothing while the tag is open."""
    before, end, after = written.partition(_THOUGHT_END)
    if not end and not _begins_with_thought(written):
        return None, written
    return before.replace(_THOUGHT_START, "", 1).strip(), after


def _begins_with_thought(written: str) -> bool:
    return written.lstrip().startswith(_THOUGHT_START)


def _certain(text: str, *, marker: str) -> str:
    """Return what will stay: without half a character, the beginning of a marker, or white space at its end."""
    whole = text.rstrip(_UNFINISHED)
    for length in range(min(len(marker) - 1, len(whole)), 0, -1):
        if whole.endswith(marker[:length]):
            return whole[:-length].rstrip()
    return whole.rstrip()
