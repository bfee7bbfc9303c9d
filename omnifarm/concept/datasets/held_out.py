"""What of a concept is scored on and never learned from: pictures, questions, prompts and edits.

Loaders of every layout fill the same values, so a benchmark does not know where its questions came from.
"""

from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from omnifarm.concept.images import DEFAULT_LIMITS, read_image
from omnifarm.concept.sources import FileSource
from omnifarm.concept.spec import ConceptImage
from omnifarm.errors import ConceptError

HeldOutKind = Literal["recognition", "vqa", "text", "choice"]
"""Yes or No, free answer about a picture, free answer about the concept, answer among options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutQuestion:
    """One question with its reference answer."""

    kind: HeldOutKind
    """How it is scored."""
    question: str
    """Names the concept by identifier."""
    answer: str
    """Reference; "Yes" or "No" for recognition, the words of the right option for a choice."""
    image: ConceptImage | None = None
    """The picture in question; None for questions about the concept as such."""
    options: tuple[tuple[str, str], ...] = ()
    """(letter, words) of a choice, in the order of the file."""

    @property
    def letter(self) -> str:
        """Letter of the right option, empty when it is no choice."""
        return next((letter for letter, words in self.options if words == self.answer), "")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnowledgePrompt:
    """A request that can only be drawn by who knows a fact about the concept (PARG)."""

    prompt: str
    """What is asked, the fact left open."""
    explicit: str = ""
    """The same with the fact put in, where the data gives it: a reference for knowledge replay, never an input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutEdit:
    """An edit to be scored."""

    source: ConceptImage
    """The picture to change."""
    instruction: str
    """Names the concept by identifier."""
    operation: str
    """One of the five operations of OmniPBench (paper section 4)."""
    references: tuple[ConceptImage, ...] = ()
    """Pictures of the concept for the judge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Everything one concept is scored on."""

    name: str
    """The concept's name."""
    images: tuple[ConceptImage, ...] = ()
    """Pictures of the concept that are not learned from."""
    questions: tuple[HeldOutQuestion, ...] = ()
    """Recognition, VQA, text-only and multiple-choice questions."""
    portrait_prompt: str = ""
    """The plain request, such as "A photo of <bo>."; empty: the data names none."""
    knowledge_prompts: tuple[KnowledgePrompt, ...] = ()
    """Requests that need knowledge."""
    dense_prompts: tuple[str, ...] = ()
    """Long prompts without the concept's knowledge (UnifyBench++)."""
    plain_prompts: tuple[str, ...] = ()
    """Prompts of the pure generation test, `<sks>` already the identifier."""
    edits: tuple[HeldOutEdit, ...] = ()
    """Edits to be scored."""
    is_derived: bool = False
    """Whether the recognition questions were made by us because the data's own list is missing."""
    source: FileSource | None = field(default=None, compare=False, repr=False)
    """Where the pictures are read from."""

    def open_image(self, image: ConceptImage) -> Image.Image:
        """Read and decode one picture.

        Raises:
            ConceptError: There is no source, or the file cannot be used.
        """
        if self.source is None:
            raise ConceptError(f"held-out data of {self.name!r} has no source to read {image.path} from; load it again")
        data = self.source.read(image.path, max_bytes=DEFAULT_LIMITS.max_bytes)
        return read_image(data, where=image.path)
