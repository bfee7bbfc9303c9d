"""A language model as judge, behind any OpenAI-compatible endpoint."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from PIL import Image

from omnifarm.bench.judges import rubrics
from omnifarm.bench.judges.base import EditVerdict, Verdict, least
from omnifarm.bench.judges.chat import ChatEndpoint
from omnifarm.bench.metrics.text import Protocol
from omnifarm.bench.tasks import BenchConcept, Item

Read = TypeVar("Read")

_TRIES = 2


class EndpointJudge:
    """Grades by asking a model; see `rubrics`.

    Args:
        chat: The model.
        protocol: compat leaves the learned system sentence in front of questions and judges edits without references.
    """

    def __init__(self, chat: ChatEndpoint, *, protocol: Protocol = "strict") -> None:
        self._chat = chat
        self._protocol = protocol
        self._unparsed: Counter[str] = Counter()

    @property
    def id(self) -> str:
        """Model, host, rubric and protocol."""
        return f"{self._chat.id} {rubrics.RUBRIC} {self._protocol}"

    def grade_answer(self, concept: BenchConcept, item: Item, answer: str) -> Verdict:
        """See `Judge.grade_answer`."""
        message = rubrics.answer_message(concept, item, answer, protocol=self._protocol)
        grade, failure = self._ask([message], rubrics.read_grade, system=rubrics.ANSWER_SYSTEM)
        return Verdict(score=grade, failure=failure)

    def grade_drawing(self, concept: BenchConcept, item: Item, picture: Image.Image) -> Verdict:
        """See `Judge.grade_drawing`."""
        message = rubrics.drawing_message(concept, item)
        grade, failure = self._ask([message, picture], rubrics.read_grade, system=rubrics.DRAWING_SYSTEM)
        return Verdict(score=grade, failure=failure)

    def grade_edit(
        self,
        concept: BenchConcept,
        item: Item,
        source: Image.Image,
        result: Image.Image,
        references: Sequence[Image.Image],
    ) -> EditVerdict:
        """See `Judge.grade_edit`; the result is shown at the source's size."""
        shown = [] if self._protocol == "compat" else list(references)
        resized = result.resize(source.size, Image.Resampling.LANCZOS) if result.size != source.size else result
        names: list[Literal["success", "preservation", "identity"]] = ["success", "preservation"]
        if shown:
            names.append("identity")
        message = rubrics.consistency_message(concept, item, num_references=len(shown))
        consistency, why = self._ask([message, *shown, source, resized], lambda text: rubrics.read_scores(text, names))
        quality, why_not = self._ask(
            [rubrics.quality_message(), resized], lambda text: rubrics.read_scores(text, ["naturalness", "artifacts"])
        )
        return EditVerdict(
            consistency=Verdict(failure=why) if consistency is None else least(consistency),
            quality=Verdict(failure=why_not) if quality is None else least(quality),
        )

    def report(self) -> dict[str, Any]:
        """See `Judge.report`."""
        return {**self._chat.report(), **dict(self._unparsed)}

    def _ask(
        self, parts: Sequence[str | Image.Image], read: Callable[[str], Read | None], *, system: str = ""
    ) -> tuple[Read | None, str]:
        """Ask, once more if the reply cannot be read, and then give up: no grade is made up."""
        for attempt in range(_TRIES):
            reply = self._chat.ask(parts, system=system, attempt=attempt)
            if reply.failure:
                return None, reply.failure
            if (value := read(reply.text)) is not None:
                return value, ""
        self._unparsed["unparsed"] += 1
        return None, "unparsed"
