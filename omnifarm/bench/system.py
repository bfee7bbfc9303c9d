"""What is scored: anything that can be taught a concept and then answers, draws and edits.

The one door between the benchmark and everything that runs a model. Learned soft tokens, prompting baselines and
models behind an endpoint are all systems; the benchmark knows no more of them than this.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from omnifarm.bench.tasks import BenchConcept


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a system says or draws."""

    text: str = ""
    """The answer in words, concepts spelled `<name>`."""
    picture: Image.Image | None = field(default=None, repr=False)
    """RGB picture; None for an answer in words."""
    trace: Mapping[str, Any] = field(default_factory=dict)
    """Knowledge replay, where there was one: `status`, `question`, `answer`, `prompt`, `duration_s`."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase."""


class System(Protocol):
    """One concept at a time: `fit` comes first. Texts name the concept `<name>`; seeds decide everything random.

    Every method may raise `OmniFarmError`; the item then counts as failed, and the others go on. After `fit` the others
    may be called from several threads at once; what they return does not depend on it.
    """

    def fit(self, concept: BenchConcept) -> None:
        """Get ready for a concept: load or learn what is needed. Replaces the concept before it."""

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question, about a picture or about the concept as such."""

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Draw a picture from words."""

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Change a picture."""
