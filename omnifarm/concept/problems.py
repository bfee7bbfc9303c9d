"""What is wrong with a concept's data, said so that its owner can mend it.

Loaders collect problems instead of stopping at the first; `validate` shows them, `load_concepts` turns those that
matter into one `ConceptError`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

from omnifarm.errors import ConceptError

Severity = Literal["error", "warning"]
"""An error stops the concept from being learned; a warning does not."""

_MAX_IN_MESSAGE = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing to mend."""

    where: str
    """File or setting."""
    what: str
    """What was expected and what was found."""
    consumer: str
    """What the data would have been used for."""
    fix: str
    """What to do."""
    severity: Severity = "error"
    """Whether the concept can be learned regardless."""
    concept: str = ""
    """Name of the concept, empty when the problem concerns the whole folder."""

    def to_json(self) -> dict[str, str]:
        """Return the fields as JSON values."""
        return asdict(self)

    def sentence(self) -> str:
        """Return the problem as one line."""
        return f"{self.where}: {self.what} ({self.consumer}); {self.fix}"


@dataclass(kw_only=True, slots=True)
class Problems:
    """Collects the problems of one concept; mutable, used by one loader at a time."""

    concept: str = ""
    """Name given to every problem added."""
    found: list[Problem] = field(default_factory=list)
    """In the order found."""

    def error(self, where: str, what: str, *, consumer: str, fix: str) -> None:
        """Add a problem that stops the concept."""
        self._add(where, what, consumer, fix, "error")

    def warn(self, where: str, what: str, *, consumer: str, fix: str) -> None:
        """Add a problem that does not stop the concept."""
        self._add(where, what, consumer, fix, "warning")

    def image_error(self, error: ConceptError, *, where: str, consumer: str) -> None:
        """Add the failure of one image file (an error of `omnifarm.concept.images`)."""
        what = str(error.facts.get("what", error.message))
        self._add(where, what, consumer, str(error.facts.get("fix", "replace the file")), "error")

    @property
    def has_errors(self) -> bool:
        """Whether any problem stops the concept."""
        return any(problem.severity == "error" for problem in self.found)

    def _add(self, where: str, what: str, consumer: str, fix: str, severity: Severity) -> None:
        self.found.append(
            Problem(where=where, what=what, consumer=consumer, fix=fix, severity=severity, concept=self.concept)
        )


def as_error(name: str, problems: Iterable[Problem]) -> ConceptError:
    """Return one error that names the problems (the first few in its message, all in its facts)."""
    errors = [problem for problem in problems if problem.severity == "error"]
    lines = "; ".join(problem.sentence() for problem in errors[:_MAX_IN_MESSAGE])
    more = f"; and {len(errors) - _MAX_IN_MESSAGE} more" if len(errors) > _MAX_IN_MESSAGE else ""
    return ConceptError(
        f"concept {name!r} cannot be learned: {lines}{more}",
        concept=name,
        problems=[problem.to_json() for problem in errors],
    )
