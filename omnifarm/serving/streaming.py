"""An answer while it is being written: what can already be told without having to take it back."""

from collections.abc import Callable, Sequence

from omnifarm.serving.replay import WRITTEN_IDENTIFIER, spell

_THOUGHT_END = "</think>"
_THOUGHT_START = "<think>"
_UNFINISHED = "\ufffd"
"""What a character decodes to whose last byte is still to come."""


class TextStream:
    """Tells an answer piece by piece; the pieces joined are the whole answer.

    Args:
        decode: Generated ids to text.
        spoken: Identifier that `<sks>` stands for; None leaves it as it is.
        think: Whether a thought comes first, which is not told.
        tell: Called with every piece.
    """

    def __init__(
        self, *, decode: Callable[[Sequence[int]], str], spoken: str | None, think: bool, tell: Callable[[str], None]
    ) -> None:
        self._decode, self._spoken, self._think, self._tell = decode, spoken, think, tell
        self._told = 0

    def feed(self, ids: Sequence[int]) -> None:
        """Take all ids written so far and tell what is certain."""
        written = self._decode(ids)
        if self._think and _THOUGHT_END not in written:
            return
        _, text = self._finished(written, is_whole=False)
        certain = text[: len(text) - _uncertain(text)].rstrip()
        if len(certain) > self._told:
            self._tell(certain[self._told :])
            self._told = len(certain)

    def finish(self, ids: Sequence[int]) -> tuple[str | None, str]:
        """Tell the rest; return thought and text."""
        thought, text = self._finished(self._decode(ids), is_whole=True)
        if len(text) > self._told:
            self._tell(text[self._told :])
        return thought, text

    def _finished(self, written: str, *, is_whole: bool) -> tuple[str | None, str]:
        thought, text = split_thought(written) if self._think else (None, written)
        if self._spoken is not None:
            text = spell(text, concept=self._spoken)
        return thought, text.strip() if is_whole else text.lstrip()


def split_thought(written: str) -> tuple[str | None, str]:
    """Return what stands inside think tags, or None, and what comes after."""
    before, end, after = written.partition(_THOUGHT_END)
    return (before.replace(_THOUGHT_START, "", 1).strip(), after) if end else (None, written)


def _uncertain(text: str) -> int:
    """Return how many last characters may still change: half a character, or the beginning of `<sks>`."""
    tail = len(text) - len(text.rstrip(_UNFINISHED))
    if tail:
        return tail
    for length in range(min(len(WRITTEN_IDENTIFIER) - 1, len(text)), 0, -1):
        if text.endswith(WRITTEN_IDENTIFIER[:length]):
            return length
    return 0
