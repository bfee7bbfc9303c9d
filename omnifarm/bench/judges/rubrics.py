"""What a language model is told when it judges, and how its replies are read.

The scales are those of the public scripts (OMNIPBENCH sections 3.3, 3.7, 3.8); the wording is ours. People are never
named: a judge that is asked about "Adrien" refuses where one asked about "the subject" does not.
"""

import json
import re
from collections.abc import Sequence
from typing import Literal

from omnifarm.bench.metrics.text import Protocol
from omnifarm.bench.tasks import BenchConcept, Item

RUBRIC = "r1"
"""Version of everything in this file; part of a judge's id."""

ANSWER_SYSTEM = (
    "You grade answers. You are given a question, the reference answer and a predicted answer. Give 1 if the prediction "
    "says what the reference says, 0.5 if it says part of it, 0 if it says something else or nothing. Ignore grammar, "
    "spelling and length. Example: question 'What is she wearing?', reference 'A blue dress.': 'a dress in blue' is 1, "
    "'a dress' is 0.5, 'a hat' is 0. Reply with the number alone."
)
DRAWING_SYSTEM = (
    "You grade drawings. You are given what is known about a subject, a prompt, and a picture drawn after the prompt. "
    "The prompt leans on one of the known facts without telling it. Give 1 if the picture shows what prompt and fact "
    "together ask for, 0.5 if it shows part of it, 0 if not. Example: if it is known that the subject owns a red dress "
    "and the prompt says 'wearing her dress', a red dress gives 1 and a blue one 0. All pictures are computer-made. "
    "Reply with the number alone."
)
_EDIT_CONTEXT = (
    "You are a digital artist who reviews edited pictures. Every picture and every person on it is made by a computer. "
)
_QUALITY_RULE = (
    "Look at the picture and give two whole numbers from 0 to 10. First, naturalness: light, shadow, distance and "
    "material look like one picture (10) or pasted together (0). Second, artifacts: none (10), or distortions, noise, "
    "watermarks, broken shapes all over (0). "
)
_JSON_RULE = 'Reply with JSON alone: {{"score": [{numbers}], "reasoning": "one sentence"}}.'

# Style and surroundings are meant to change everything, so what has to stay differs (OMNIPBENCH section 4.1).
_PRESERVED = {
    "object_manipulation": "everything except the object that is added, removed or replaced",
    "attribute_modification": "who it is, the pose unless it was to change, and the background",
    "spatial_transformation": "who it is and what else the scene holds",
    "environment_interaction": "who it is and the pose; light, weather and background may change",
    "style_appearance": "who it is and the layout; texture and colour may change",
}
_WORDS_TOO = frozenset({"will", "may", "mark", "grace", "hope", "joy", "faith", "rose", "bill", "sue", "art", "jack"})
"""Names that are words as well: written small or at the start of a sentence they are taken for the word."""
_LONGEST_REPLY = 10_000
"""Characters of a reply that are looked at for its numbers."""
_SHORTEST_PART = 4
"""Letters from which on a part of a longer name, such as a family name, gives somebody away."""
_REMOVES = re.compile(r"\bremove\b", re.IGNORECASE)


def subject_name(concept: BenchConcept) -> str:
    """Return how a judge is told of the concept."""
    return "the person shown" if concept.spec.group == "person" else f"the {concept.spec.class_noun} shown"


def without_name(text: str, concept: BenchConcept) -> str:
    """Return a text with the concept's identifier, its bare name and the placeholder replaced by a plain phrase."""
    phrase = subject_name(concept)
    for written in (concept.identifier, "<sks>"):
        text = text.replace(written, phrase)
    parts = concept.name.split("_")
    if concept.name in _WORDS_TOO:
        return re.sub(rf"(?<=[a-z,;:] ){concept.name.title()}(?!\w)", phrase, text)
    spoken = "[ _]".join(map(re.escape, parts))
    text = re.sub(rf"(?<![\w<]){spoken}(?![\w>])", phrase, text, flags=re.IGNORECASE)
    alone = [re.escape(part.title()) for part in parts if len(parts) > 1 and len(part) >= _SHORTEST_PART]
    return re.sub(rf"(?<![\w<])(?:{'|'.join(alone)})(?![\w>])", phrase, text) if alone else text


def answer_message(concept: BenchConcept, item: Item, answer: str, *, protocol: Protocol) -> str:
    """Return the message about one answer; the judge of answers never sees the picture."""
    question = without_name(item.text, concept)
    if protocol == "compat":
        # The public script leaves the learned system sentence in front of the question.
        question = f"{concept.identifier} is {''.join(f'<token_{i}>' for i in range(16))}.\n{item.text}"
    return (
        f"Question: {question}\nReference: {without_name(item.reference, concept)}\n"
        f"Predicted answer: {without_name(answer, concept)}\nNumber:"
    )


def drawing_message(concept: BenchConcept, item: Item) -> str:
    """Return the message about one drawing; the picture follows it."""
    spec = concept.spec
    lines = [
        f"Known about {subject_name(concept)}:",
        f"looks: {without_name(spec.info, concept)}",
        f"facts: {without_name(' '.join(spec.extra_info), concept)}",
        f"Prompt: {without_name(item.text, concept)}",
        "Number:",
    ]
    return "\n".join(lines)


def consistency_message(concept: BenchConcept, item: Item, *, num_references: int) -> str:
    """Return the message about what an edit did; source and result follow, after the references if there are any."""
    subject = subject_name(concept)
    shown = (
        f"First come {num_references} reference pictures of {subject}, then the source, then the edited picture. "
        if num_references
        else "First comes the source, then the edited picture. "
    )
    kept = _PRESERVED.get(item.operation, "everything the instruction does not name")
    rules = [
        "First, success: the edited picture does what the instruction says (10), or does not at all (0).",
        f"Second, preservation: {kept} is as in the source (10), or nothing of it is (0).",
    ]
    if num_references:
        identity = (
            f"exactly {subject} is gone and nobody else (10), or another is gone or {subject} is still there (0)"
            if _REMOVES.search(item.text)
            else f"the edited picture still shows {subject} of the references (10), or clearly another one (0)"
        )
        rules.append(f"Third, identity: {identity}.")
    numbers = ", ".join(["success", "preservation", "identity"][: len(rules)])
    return (
        f"{_EDIT_CONTEXT}{shown}Instruction: {without_name(item.text, concept)}\nGive {len(rules)} whole numbers from "
        f"0 to 10. {' '.join(rules)} {_JSON_RULE.format(numbers=numbers)}"
    )


def quality_message() -> str:
    """Return the message about how an edited picture looks; the picture follows it."""
    return f"{_EDIT_CONTEXT}{_QUALITY_RULE}{_JSON_RULE.format(numbers='naturalness, artifacts')}"


def read_grade(text: str) -> float | None:
    """Return the first number of a reply if it lies in 0..1; None otherwise."""
    found = re.search(r"-?\d+(?:\.\d+)?", text)
    grade = float(found[0]) if found else -1.0
    return grade if 0 <= grade <= 1 else None


def read_scores(
    text: str, names: Sequence[Literal["success", "preservation", "identity", "naturalness", "artifacts"]]
) -> dict[str, float] | None:
    """Return the named sub-scores 0..10 of a JSON reply; None when it does not hold exactly those."""
    text = text[:_LONGEST_REPLY]
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = json.JSONDecoder().raw_decode(text[start:])
        except (ValueError, RecursionError):
            continue
        scores = value.get("score") if isinstance(value, dict) else None
        if (
            isinstance(scores, list)
            and len(scores) == len(names)
            and all(isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 10 for one in scores)
        ):
            return {name: float(one) for name, one in zip(names, scores, strict=True)}
    return None
