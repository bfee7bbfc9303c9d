"""The fixed bank of worked examples that a replay prompt may show, all about invented concepts.

None of these names or facts belongs to anybody's concept, so a fact in a reply can only come from the learned
soft tokens. A prompt that shows k examples shows the first k: k = 0..6 are nested. The third one leaves nothing
open, so that every prompt with k >= 3 has seen a request that is to be repeated unchanged.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Exemplar:
    """One request, worked through to the prompt a painter can use."""

    request: str
    """What was asked for."""
    question: str
    """What the request leaves open."""
    answer: str
    """What is known about it."""
    prompt: str
    """The request with the answer filled in."""


NOTHING = "Nothing."
"""The question and the answer of a request that leaves nothing open."""

EXEMPLARS: tuple[Exemplar, ...] = (
    Exemplar(
        request="A photo of <quill> with the favorite toy.",
        question="What is the favorite toy of <quill>?",
        answer="A red kite.",
        prompt="A photo of <quill> with a red kite.",
    ),
    Exemplar(
        request="A photo of <orsk> at home.",
        question="Where is the home of <orsk>?",
        answer="The library.",
        prompt="A photo of <orsk> in the library.",
    ),
    Exemplar(
        request="A photo of <velda> on a bridge.",
        question=NOTHING,
        answer=NOTHING,
        prompt="A photo of <velda> on a bridge.",
    ),
    Exemplar(
        request="A photo of <dapple> dressed for sailing.",
        question="What does <dapple> wear for sailing?",
        answer="A striped oilskin coat.",
        prompt="A photo of <dapple> wearing a striped oilskin coat.",
    ),
    Exemplar(
        request="A photo of <brimm> with the best friend.",
        question="Who is the best friend of <brimm>?",
        answer="A blue turtle.",
        prompt="A photo of <brimm> with a blue turtle.",
    ),
    Exemplar(
        request="A photo of the place where <ixtel> works.",
        question="Where does <ixtel> work?",
        answer="A lighthouse with a copper roof.",
        prompt="A photo of <ixtel> at a lighthouse with a copper roof.",
    ),
)
"""Possession, place, nothing open, clothing, companion, workplace."""
