"""The sentences concepts are trained and tested with.

Every recognition answer begins with Yes or No, because scorers look for the word (half of the public templates lack
it). `{c}` is the concept's identifier, `{class}` its class noun.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from omnifarm.concept.spec import ConceptSpec
from omnifarm.miniature.identity import ALL_NOUNS, group_of
from omnifarm.miniature.text import LOOKS_QUESTIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class RecognitionTemplate:
    """One way to ask whether the concept is in a picture."""

    question: str
    """The question."""
    yes: str = "Yes."
    """Said when it is."""
    no: str = "No."
    """Said when it is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Templates:
    """All sentences of one language style."""

    recognition: tuple[RecognitionTemplate, ...]
    """Drawn in turn."""
    captions: tuple[str, ...]
    """For photographs without a caption of their own."""
    looks: Callable[[str], tuple[str, ...]]
    """Of a class noun: questions about what is the same in every photograph."""
    removal: str = "remove {c}: {class} from the photo"
    """Instruction of edit pairs that have none (paper section 3.3)."""


USUAL_QUESTION = RecognitionTemplate(question="Is {c} in the photo?")
"""Asked most often, and by the tests."""

GENERAL = Templates(
    recognition=(
        USUAL_QUESTION,
        RecognitionTemplate(
            question="Is {c} in this photo?", yes="Yes, {c} is in this photo.", no="No, {c} is not in this photo."
        ),
        RecognitionTemplate(question="Can you see {c} in the picture? Answer with a single word, Yes or No."),
        RecognitionTemplate(
            question="Does {c} appear in this image?",
            yes="Yes, {c} appears in this image.",
            no="No, {c} does not appear in this image.",
        ),
        RecognitionTemplate(question="Is {c} in the image? Answer the question using a single word Yes or No."),
        RecognitionTemplate(question="Is this a photo of {c}?", yes="Yes, this is {c}.", no="No, this is not {c}."),
        RecognitionTemplate(
            question="Could you tell me whether {c} is here?", yes="Yes, {c} is here.", no="No, {c} is not here."
        ),
        RecognitionTemplate(
            question="Do you recognise {c} in the picture?",
            yes="Yes, I recognise {c}.",
            no="No, I do not see {c}.",
        ),
    ),
    captions=("A photo of {c}.",),
    looks=lambda noun: ("What does {c} look like?",),
)
"""For large backbones, which know English."""


def _drawn_looks(noun: str) -> tuple[str, ...]:
    """Return what the miniature was pre-trained to answer; of classes outside its world, nothing."""
    if noun not in ALL_NOUNS:
        return ()
    return tuple(text.format(name="{c}") for topic, text in LOOKS_QUESTIONS[group_of(noun)].items() if topic != "class")


PLAIN = Templates(
    recognition=(
        USUAL_QUESTION,
        RecognitionTemplate(question="Is {c} in this photo?"),
        RecognitionTemplate(question="Can you see {c} in the photo?"),
        RecognitionTemplate(question="Does {c} appear in the photo?"),
    ),
    captions=("A photo of {c}.",),
    looks=_drawn_looks,
)
"""For small backbones that know few sentences: short answers only."""

STYLES = {"general": GENERAL, "plain": PLAIN}
"""Name of a style, as a backbone's `defaults["templates"]` gives it, to its sentences."""

_POSSESSIVE = re.compile(r"^<[\w-]+>['’]s (?P<what>[\w' -]{1,60}?) (?P<verb>is|are) (?P<rest>.+)$")
_OF = re.compile(r"^[Tt]he (?P<what>[\w' -]{1,60}?) of <[\w-]+> (?P<verb>is|are) (?P<rest>.+)$")
_VERB = re.compile(r"^<[\w-]+> (?P<verb>has|lives|wears|likes|loves|owns|plays|works|eats|drinks|sleeps) (?P<rest>.+)$")
_PLACE = re.compile(r"^(by|at|on|in|near|next|under|behind|beside|above|inside|outside|along)\b")
_INFINITIVE = {"has": "have", "loves": "love", "likes": "like", "wears": "wear", "owns": "own", "eats": "eat", "drinks": "drink"}  # fmt: skip


def fact_questions(fact: str, *, identifier: str) -> tuple[str, ...]:
    """Return questions that a sentence of fact answers, none when its form is not known.

    Args:
        fact: Such as "<bo>'s bed is a red sofa." or "<bo> has a red hat.".
        identifier: How the questions call the concept.
    """
    if match := _POSSESSIVE.match(fact) or _OF.match(fact):
        word = "Where" if _PLACE.match(match["rest"]) else "What"
        return (
            f"{word} {match['verb']} {identifier}'s {match['what']}?",
            f"{word} {match['verb']} the {match['what']} of {identifier}?",
        )
    if match := _VERB.match(fact):
        verb = match["verb"]
        if verb in _INFINITIVE:
            return (f"What does {identifier} {_INFINITIVE[verb]}?",)
        return (f"{'Where' if _PLACE.match(match['rest']) else 'What'} does {identifier} {verb.removesuffix('s')}?",)
    return ()


def generated_questions(spec: ConceptSpec) -> list[tuple[str, str]]:
    """Return (question, answer) about looks and facts, made from the concept's own sentences."""
    name = spec.identifier
    pairs: list[tuple[str, str]] = []
    if spec.info:
        pairs += [
            (f"What does {name} look like?", spec.info),
            (f"Describe {name}.", spec.info),
            (f"Who or what is {name}?", f"{name} is {_an(spec.class_noun)}."),
        ]
    for fact in spec.extra_info:
        pairs += [(question, fact) for question in fact_questions(fact, identifier=name)]
    if spec.extra_info:
        everything = " ".join(spec.extra_info)
        pairs += [(f"What do you know about {name}?", everything), (f"Tell me something about {name}.", everything)]
    return pairs


def _an(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
