"""One concept's data: what it is called, what it looks like, what is known about it, which pictures show it.

A `ConceptSpec` is what every layout is read into and what training, serving and scoring start from. It names pictures
by file and pixel digest and reads them only when asked. Texts name the concept by its identifier, `<name>`.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from omnifarm.concept.images import DEFAULT_LIMITS, ImageLimits, pixel_digest, read_image
from omnifarm.concept.sources import FileSource
from omnifarm.errors import ConceptError

PLACEHOLDER = "<sks>"
"""How texts name the concept without knowing its name, and how the model itself spells it."""
NegativeKind = Literal["hard", "easy"]
"""Hard: looks like the concept (same class). Easy: anything else."""
QAKind = Literal["vqa", "text", "recognition"]
"""About a picture, about the concept as such, or whether the concept is in a picture."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_BARE_SKS = re.compile(r"(?<![<\w])sks(?![\w>])")
_DIGEST_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptImage:
    """One picture of a concept's data, checked and named by its pixels."""

    path: str
    """Relative path in the concept's source."""
    digest: str
    """SHA-256 of the decoded pixels."""
    size: tuple[int, int]
    """(width, height) in pixels, upright."""
    caption: str = ""
    """What it shows, naming the concept; empty: a standard caption is used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QA:
    """A question and its answer."""

    question: str
    """Names the concept by identifier."""
    answer: str
    """What the model shall say; recognition answers begin with Yes or No."""
    image: ConceptImage | None = None
    """The picture in question; None for a question about the concept as such."""
    kind: QAKind = "text"
    """What the pair teaches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Negative:
    """A picture in which the concept is not."""

    image: ConceptImage
    """The picture."""
    kind: NegativeKind = "easy"
    """How alike it looks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditPair:
    """A picture, what is asked, and the picture wanted."""

    source: ConceptImage
    """Before."""
    target: ConceptImage
    """After; the same pixels as `source` when nothing is to change."""
    instruction: str
    """Names the concept by identifier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptSpec:
    """Everything a concept is learned from."""

    name: str
    """Letters, digits, `_` and `-`, at most 64; unique in a set."""
    class_noun: str
    """What it is, such as "dog"."""
    images: tuple[ConceptImage, ...]
    """Photographs that show it, at least one."""
    info: str = ""
    """One sentence about its looks."""
    extra_info: tuple[str, ...] = ()
    """Facts no photograph shows, one sentence each."""
    qa: tuple[QA, ...] = ()
    """Questions and answers given with the data."""
    negatives: tuple[Negative, ...] = ()
    """Pictures without it."""
    edits: tuple[EditPair, ...] = ()
    """Edits to learn from."""
    group: str = ""
    """person, pet or object, where the data says so."""
    source: FileSource | None = field(default=None, compare=False, repr=False)
    """Where the pictures are read from."""

    def __post_init__(self) -> None:
        if (reason := name_problem(self.name)) is not None:
            raise ConceptError(reason, concept=self.name)
        if not self.images:
            raise ConceptError(f"concept {self.name!r} needs at least one photograph, found none; add photographs")
        if not self.class_noun.strip():
            raise ConceptError(f"concept {self.name!r} needs a class noun such as 'dog', found none; name its class")

    @property
    def identifier(self) -> str:
        """The name in angle brackets, as texts write it."""
        return f"<{self.name}>"

    def all_images(self) -> Iterator[ConceptImage]:
        """Yield every picture of the data once (by digest), photographs first."""
        seen: set[str] = set()
        pictures = [*self.images, *(one.image for one in self.negatives), *(qa.image for qa in self.qa)]
        pictures += [picture for edit in self.edits for picture in (edit.source, edit.target)]
        for picture in pictures:
            if picture is not None and picture.digest not in seen:
                seen.add(picture.digest)
                yield picture

    def open_image(self, image: ConceptImage, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
        """Read and decode one picture.

        Raises:
            ConceptError: The spec has no source, the file cannot be used, or its pixels are not those the spec was
                made from: training on them would belie the artifact's data digest.
        """
        if self.source is None:
            raise ConceptError(
                f"concept {self.name!r} has no source to read {image.path} from; load it from its folder"
            )
        decoded = read_image(self.source.read(image.path, max_bytes=limits.max_bytes), where=image.path, limits=limits)
        if (found := pixel_digest(decoded)) != image.digest:
            raise ConceptError(
                f"{image.path}: expected the picture with digest {image.digest[:12]}, found {found[:12]}; "
                "the file was changed after the concept was read: submit the concept again",
                concept=self.name,
                file=image.path,
            )
        return decoded

    def digest(self) -> str:
        """Return the identity of the data: 64 hexadecimal digits.

        File names and folders do not count, pixels and texts do.
        """
        values: dict[str, Any] = {
            "version": _DIGEST_VERSION,
            "name": self.name,
            "class": self.class_noun,
            "group": self.group,
            "images": [[image.digest, image.caption] for image in self.images],
            "info": self.info,
            "extra_info": list(self.extra_info),
            "qa": [[qa.kind, qa.question, qa.answer, qa.image.digest if qa.image else None] for qa in self.qa],
            "negatives": [[one.kind, one.image.digest] for one in self.negatives],
            "edits": [[edit.source.digest, edit.target.digest, edit.instruction] for edit in self.edits],
        }
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def name_problem(name: str) -> str | None:
    """Say what is wrong with a concept's name, or None."""
    if _NAME.fullmatch(name):
        return None
    return (
        f"a concept's name must be 1 to 64 letters, digits, '_' or '-', beginning with a letter or digit, "
        f"found {name[:80]!r}; rename the folder"
    )


def normalise_text(text: str, *, name: str, folder: str = "") -> str:
    """Return a text that names the concept as `<name>`.

    `<sks>`, a bare `sks` and `<folder>` become the identifier; white space is made single. Other identifiers stay.
    """
    identifier = f"<{name}>"
    text = " ".join(text.split()).replace(PLACEHOLDER, identifier)
    if folder:
        text = text.replace(f"<{folder}>", identifier)
    return _BARE_SKS.sub(identifier, text)
