"""What the demo tries on each concept: from the world's own test set, or sensible defaults for a user's folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnifarm.concept.spec import ConceptSpec

TRIALS_FILE = "trials.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question."""

    kind: str
    """"recognition", "vqa", "fact" or "taught"."""
    text: str
    """The question, concepts by identifier."""
    image: Path | None
    """The photo it is about."""
    expected: str | None
    """The true answer; None if nobody knows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """One edit."""

    instruction: str
    """The instruction, concepts by identifier."""
    source: Path
    """The photo to change."""
    target: Path | None
    """The exact result, where the world can draw it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """Everything tried on one concept."""

    name: str
    """The concept's bare name."""
    questions: tuple[Question, ...]
    """In the order they are shown."""
    drawings: tuple[tuple[str, str], ...]
    """(prompt, replay mode)."""
    edits: tuple[Edit, ...]
    """In the order they are shown."""

    @property
    def num_requests(self) -> int:
        """How many requests this makes."""
        return len(self.questions) + len(self.drawings) + len(self.edits)


def read_trials(folder: Path, *, name: str) -> Trials:
    """Read the test set that the drawn world writes beside a concept (`trials.json`).

    Args:
        folder: The concept's folder; paths inside the file are relative to it.
        name: The concept's bare name.

    Returns:
        The trials.
    """
    document: dict[str, Any] = json.loads((folder / TRIALS_FILE).read_text(encoding="utf-8"))
    return Trials(
        name=name,
        questions=tuple(
            Question(
                kind=entry["kind"],
                text=entry["question"],
                image=None if entry["image"] is None else folder / entry["image"],
                expected=entry["answer"],
            )
            for entry in document["questions"]
        ),
        drawings=tuple((entry["prompt"], entry["replay"]) for entry in document["drawings"]),
        edits=tuple(
            Edit(instruction=entry["instruction"], source=folder / entry["source"], target=folder / entry["target"])
            for entry in document["edits"]
        ),
    )


def default_trials(spec: ConceptSpec, *, photo: Path, strangers: Sequence[Path]) -> Trials:
    """Make up trials for a folder that has no test set.

    Args:
        spec: The concept.
        photo: One of its own photos (seen in training, so these answers prove little; the page says "taught").
        strangers: Photos of other concepts, for a question whose answer is no.

    Returns:
        The trials.
    """
    who = spec.identifier
    questions = [Question(kind="taught", text=f"Is {who} in the photo?", image=photo, expected="Yes.")]
    questions += [
        Question(kind="recognition", text=f"Is {who} in the photo?", image=stranger, expected="No.")
        for stranger in strangers[:1]
    ]
    questions += [
        Question(kind="taught", text=pair.question, image=None, expected=pair.answer)
        for pair in spec.qa
        if pair.image is None
    ][:4]
    return Trials(
        name=spec.name,
        questions=tuple(questions),
        drawings=(
            (f"A photo of {who}.", "off"),
            (f"A photo of {who} at home.", "off"),
            (f"A photo of {who} at home.", "unified"),
        ),
        edits=(Edit(instruction=f"remove {who}: {spec.class_noun} from the photo", source=photo, target=None),),
    )
