"""From texts that name concepts to token ids with slots for learned vectors, and back.

    system prompt   <sks> is <und_1>..<und_Nu> <gen_1>..<gen_Ng>.     a text segment of its own, first in a sample
    user text       Is <maeve> in the photo?                          <maeve> becomes the slot of its own vector
    target text     Yes, <sks> is in the photo.                       spelled: the frozen head cannot write a vector

One template serves training and inference. User text is untrusted: special strings in it stay plain text, and only
identifiers the caller lists become slots. Several concepts share one table, each at its own base row.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from omnifarm.backbone.segments import SoftSlot, TextSegment
from omnifarm.concept.soft_tokens import SoftTokenLayout, SoftTokens
from omnifarm.concept.spec import PLACEHOLDER
from omnifarm.errors import ConfigError

_IDENTIFIER = re.compile(r"<[A-Za-z0-9][A-Za-z0-9_-]{0,63}>")


class Tokenizer(Protocol):
    """What this file needs of `BackboneTokenizer`."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of trusted text."""

    def encode_user(self, text: str) -> list[int]:
        """Return the ids of untrusted text, special strings spelled out."""


def system_prompt(of: SoftTokens | SoftTokenLayout, *, tokenizer: Tokenizer, base_row: int = 0) -> TextSegment:
    """Return the segment that introduces a concept.

    Generation vectors are routed to the generation expert unless the layout is coupled (paper eq. 1, 10-13).

    Args:
        of: The concept's soft tokens, or their layout before they exist.
        tokenizer: The backbone's.
        base_row: Row of the concept's table in the table given to the forward pass.
    """
    layout = of.layout if isinstance(of, SoftTokens) else of
    text = _Builder(tokenizer)
    text.slot(base_row + layout.sks_row)
    text.trusted(" is ")
    for row in layout.und_rows:
        text.slot(base_row + row)
    if layout.num_und and layout.num_gen:
        text.trusted(" ")
    for row in layout.gen_rows:
        text.slot(base_row + row, expert_gen=layout.gen_expert == "gen")
    text.trusted(".")
    return text.segment()


def system_prompts(of: Sequence[SoftTokens | SoftTokenLayout], *, tokenizer: Tokenizer) -> list[TextSegment]:
    """Return the system prompts of several concepts, whose tables are concatenated in the same order."""
    prompts = []
    base_row = 0
    for one in of:
        prompts.append(system_prompt(one, tokenizer=tokenizer, base_row=base_row))
        base_row += (one.layout if isinstance(one, SoftTokens) else one).num_rows
    return prompts


def user_text(text: str, *, tokenizer: Tokenizer, rows: Mapping[str, int]) -> TextSegment:
    """Return a question, caption or instruction, concepts' names replaced by their learned vectors.

    Args:
        text: Untrusted. `<sks>` means the concept when there is exactly one.
        tokenizer: The backbone's.
        rows: Identifier (`<maeve>`) to the row of its vector. Names not listed stay plain text.
    """
    known = dict(rows)
    if len(set(known.values())) == 1:
        known.setdefault(PLACEHOLDER, next(iter(known.values())))
    built = _Builder(tokenizer)
    position = 0
    for match in _IDENTIFIER.finditer(text):
        if (row := known.get(match[0])) is None:
            continue
        built.untrusted(text[position : match.start()])
        built.slot(row)
        position = match.end()
    built.untrusted(text[position:])
    return built.segment()


def target_text(text: str, *, tokenizer: Tokenizer, identifiers: Sequence[str]) -> TextSegment:
    """Return an answer to be learned: the concept spelled `<sks>` with ordinary tokens, loss on every id and the end.

    Args:
        text: The answer.
        tokenizer: The backbone's.
        identifiers: The concept's names in `text`.
    """
    for identifier in identifiers:
        text = text.replace(identifier, PLACEHOLDER)
    ids = tokenizer.encode_user(text)
    if not ids:
        raise ConfigError("a target text must not be empty; leave the example out")
    return TextSegment(ids=tuple(ids), has_loss=True)


def name_in_reply(text: str, *, identifiers: Sequence[str]) -> str:
    """Return what the model wrote with `<sks>` replaced by the concept it means.

    With several concepts the placeholder is ambiguous and stays.
    """
    return text.replace(PLACEHOLDER, identifiers[0]) if len(identifiers) == 1 else text


class _Builder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Never looked up: the packer takes slots from the table.
        self._placeholder = tokenizer.encode(".")[0]
        self._ids: list[int] = []
        self._slots: list[SoftSlot] = []

    def trusted(self, text: str) -> None:
        self._ids += self._tokenizer.encode(text)

    def untrusted(self, text: str) -> None:
        if text:
            self._ids += self._tokenizer.encode_user(text)

    def slot(self, row: int, *, expert_gen: bool = False) -> None:
        self._slots.append(SoftSlot(offset=len(self._ids), row=row, expert="gen" if expert_gen else "und"))
        self._ids.append(self._placeholder)

    def segment(self) -> TextSegment:
        return TextSegment(ids=tuple(self._ids), soft=tuple(self._slots))
