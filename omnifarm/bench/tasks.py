"""What is asked of a system: concepts, items, and the benchmark they make up.

An item is one question, one drawing or one edit. Items are plain values with ids of their own; what a system replies
is filed under the id, so any sharding of the work and any interruption leave the same files.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from PIL import Image

from omnifarm.concept.datasets.held_out import HeldOut
from omnifarm.concept.spec import ConceptImage, ConceptSpec
from omnifarm.errors import ConfigError
from omnifarm.seeding import derive_seed

Task = Literal["rec", "vqa", "qa", "pure", "people", "parg", "edit"]
"""Recognition; questions about a picture and without; drawings after general prompts, of persons, and after prompts
that lean on a fact; edits."""

UNDERSTANDING: tuple[Task, ...] = ("rec", "vqa", "qa")
"""Tasks answered in words."""
DRAWING: tuple[Task, ...] = ("pure", "people", "parg")
"""Tasks answered with a picture drawn from words."""
EDITING: tuple[Task, ...] = ("edit",)
"""Tasks answered with a changed picture."""
TASKS: tuple[Task, ...] = (*UNDERSTANDING, *DRAWING, *EDITING)
"""All tasks, in the order of the paper's table."""

OPERATIONS = (
    "object_manipulation",
    "attribute_modification",
    "spatial_transformation",
    "environment_interaction",
    "style_appearance",
)
"""Kinds of edit, a fifth of a concept's edits each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConcept:
    """One concept: what it is learned from and what it is scored on."""

    spec: ConceptSpec
    """What it is learned from; its photographs are the references of similarity measures."""
    held_out: HeldOut
    """What it is scored on."""

    @property
    def name(self) -> str:
        """Bare name."""
        return self.spec.name

    @property
    def identifier(self) -> str:
        """The name in angle brackets."""
        return self.spec.identifier

    def train_pictures(self) -> list[Image.Image]:
        """Read the photographs it is learned from."""
        return [self.spec.open_image(image) for image in self.spec.images]

    def test_pictures(self) -> list[Image.Image]:
        """Read the held-out photographs."""
        return [self.held_out.open_image(image) for image in self.held_out.images]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question, drawing or edit."""

    id: str
    """Unique within the concept; letters, digits and dashes."""
    task: Task
    """What kind."""
    concept: str
    """Bare name."""
    text: str
    """Question, prompt or instruction; names the concept by identifier."""
    image: ConceptImage | None = None
    """The picture asked about or edited."""
    reference: str = ""
    """Expected answer; for parg the request with the fact filled in, where the data has it."""
    index: int = 0
    """Which of several pictures after the same prompt."""
    operation: str = ""
    """Kind of edit."""
    references: tuple[ConceptImage, ...] = ()
    """Photographs of the concept to show a judge."""

    def seed(self, base: int) -> int:
        """Return the seed of everything random about the reply, 0..2**63-1."""
        return derive_seed(
            base, self.task, self.concept, self.text, self.image.digest if self.image else "", self.index
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Concepts and everything that is asked about them."""

    concepts: tuple[BenchConcept, ...]
    """In the order of the data."""
    items: tuple[Item, ...]
    """By concept, then by task."""
    notes: tuple[str, ...] = ()
    """What was missing, left out, or built here because the data lacks it, with the seed that built it."""

    def concept(self, name: str) -> BenchConcept:
        """Return one concept."""
        return next(concept for concept in self.concepts if concept.name == name)

    def items_of(self, concept: str, *tasks: Task) -> list[Item]:
        """Return a concept's items of some tasks (all tasks when none is named), in order."""
        return [item for item in self.items if item.concept == concept and (not tasks or item.task in tasks)]

    def picture_of(self, item: Item) -> Image.Image | None:
        """Read the picture an item is about; None where there is none.

        Raises:
            ConceptError: It is gone or damaged. (The public loader goes on with a black one.)
        """
        return None if item.image is None else self.concept(item.concept).held_out.open_image(item.image)

    def digest(self) -> str:
        """Return the identity of the benchmark: 64 hexadecimal digits; pictures count by their pixels."""
        values = {
            "concepts": [concept.spec.digest() for concept in self.concepts],
            "items": [_plain(item) for item in self.items],
        }
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _plain(item: Item) -> list[object]:
    image = item.image.digest if item.image else ""
    return [item.id, item.task, item.concept, item.text, image, item.reference, item.index, item.operation]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is asked. None takes all there is."""

    concepts: int | None = None
    """Concepts, evenly over the groups."""
    questions: int | None = None
    """Items of each understanding task, evenly over the answers of rec."""
    prompts: int | None = None
    """General prompts (25 in the paper's source)."""
    images_per_prompt: int = 4
    """Drawings after each general prompt."""
    people_images: int = 100
    """Drawings of a person after "A photo of <c>."."""
    parg_prompts: int | None = None
    """Prompts that lean on a fact."""
    parg_images: int = 4
    """Drawings after each of them."""
    edits_per_operation: int | None = None
    """Edits of each of the five kinds."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and (isinstance(value, bool) or value < (1 if name == "concepts" else 0)):
                raise ConfigError(f"sizes: {name} must be a whole number of at least 0, found {value!r}")


PAPER = Sizes()
"""Everything, as often as the public scripts draw it."""
MINIATURE = Sizes(images_per_prompt=1, people_images=4, parg_images=1)
"""The whole miniature benchmark, one picture per prompt."""
QUICK = Sizes(
    concepts=3, questions=6, prompts=2, images_per_prompt=1, people_images=2, parg_prompts=3, parg_images=1,
    edits_per_operation=1,
)  # fmt: skip
"""Enough to see that everything works."""
