"""What a judge is: it grades answers, drawings and edits, or says why it could not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from omnifarm.bench.tasks import BenchConcept, Item


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One grade, or the reason why there is none."""

    score: float | None = None
    """0..1; None when there is none."""
    failure: str = ""
    """`refused`, `unparsed`, `unavailable: ...`; empty when there is a score."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Sub-scores 0..10, where the score is made of some."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditVerdict:
    """The two grades of an edit."""

    consistency: Verdict
    """SEMA-C: least of success, preservation and (with references) identity, over 10."""
    quality: Verdict
    """QUAL-I: least of naturalness and freedom from artifacts, over 10."""


class Judge(Protocol):
    """Grades replies. Safe to use from several threads."""

    @property
    def id(self) -> str:
        """Who judges, by what rubric: numbers of different judges are never compared."""

    def grade_answer(self, concept: BenchConcept, item: Item, answer: str) -> Verdict:
        """Grade an answer against the item's reference: 0 wrong, 0.5 partly, 1 right."""

    def grade_drawing(self, concept: BenchConcept, item: Item, picture: Image.Image) -> Verdict:
        """Grade whether a drawing shows the fact its prompt leans on: 0, 0.5 or 1."""

    def grade_edit(
        self,
        concept: BenchConcept,
        item: Item,
        source: Image.Image,
        result: Image.Image,
        references: Sequence[Image.Image],
    ) -> EditVerdict:
        """Grade an edit; `references` show the concept."""

    def report(self) -> dict[str, Any]:
        """Return what the judging took: calls, tokens, cost, failures by kind."""


def least(parts: Mapping[str, float]) -> Verdict:
    """Return the verdict of some sub-scores 0..10: their minimum over 10 (GEdit's rule for a criterion)."""
    return Verdict(score=min(parts.values()) / 10, parts=dict(parts))
