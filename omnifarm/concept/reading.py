"""What loaders of every layout share: pictures checked once, settings looked up kindly, lists shortened.

A `Reader` belongs to one source; it remembers pictures it has already checked, so a set's shared negatives are
decoded once and not once per concept.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omnifarm.concept.images import (
    DEFAULT_LIMITS,
    OTHER_PICTURE_SUFFIXES,
    PHOTO_SUFFIXES,
    ImageLimits,
    pixel_digest,
    read_image,
)
from omnifarm.concept.problems import Problems
from omnifarm.concept.sources import MAX_TEXT_BYTES, FileSource
from omnifarm.concept.spec import ConceptImage, EditPair
from omnifarm.errors import ConceptError

MAX_IMAGES = 2000
"""Pictures of one kind per concept."""
FEW_PHOTOGRAPHS = 4
"""Below this many photographs a warning is given."""


@dataclass(slots=True)
class Reader:
    """Reads pictures and texts of one source, remembering the pictures. Not safe for concurrent use."""

    source: FileSource
    """Where the files lie."""
    limits: ImageLimits = DEFAULT_LIMITS
    """What pictures are let in."""
    _checked: dict[str, ConceptImage | ConceptError] = field(default_factory=dict, repr=False)

    def image(self, path: str, *, problems: Problems, consumer: str, caption: str = "") -> ConceptImage | None:
        """Check one picture; on failure add a problem and return None."""
        if path not in self._checked:
            try:
                data = self.source.read(path, max_bytes=self.limits.max_bytes)
                decoded = read_image(data, where=path, limits=self.limits)
            except ConceptError as error:
                self._checked[path] = error
            else:
                self._checked[path] = ConceptImage(path=path, digest=pixel_digest(decoded), size=decoded.size)
        found = self._checked[path]
        if isinstance(found, ConceptError):
            problems.image_error(found, where=path, consumer=consumer)
            return None
        if not caption:
            return found
        return ConceptImage(path=found.path, digest=found.digest, size=found.size, caption=caption)

    def images(self, paths: Iterable[str], *, problems: Problems, consumer: str) -> list[ConceptImage]:
        """Check several pictures; those that fail become problems, pictures given twice are kept once."""
        paths = list(paths)
        if len(paths) > MAX_IMAGES:
            problems.warn(
                paths[0].rpartition("/")[0] or self.source.url,
                f"holds {len(paths)} pictures, the first {MAX_IMAGES} are used",
                consumer=consumer,
                fix="keep the best ones",
            )
            paths = paths[:MAX_IMAGES]
        found: dict[str, ConceptImage] = {}
        for path in paths:
            image = self.image(path, problems=problems, consumer=consumer)
            if image is None:
                continue
            if image.digest in found:
                problems.warn(
                    path,
                    f"shows the same pixels as {found[image.digest].path}",
                    consumer=consumer,
                    fix="delete one of the two",
                )
                continue
            found[image.digest] = image
        return list(found.values())

    def text(self, path: str) -> str:
        """Return a text file's content.

        Raises:
            ConceptError: Missing, too large or not UTF-8.
        """
        try:
            return self.source.read(path, max_bytes=MAX_TEXT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConceptError(
                f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8",
                what=f"is not UTF-8 text ({error.reason} at byte {error.start})",
                fix="save it as UTF-8",
            ) from error

    def json(self, path: str) -> Any:
        """Return a JSON file's value.

        Raises:
            ConceptError: Missing, too large or not JSON.
        """
        try:
            return json.loads(self.text(path))
        except (ValueError, RecursionError) as error:
            # A number of thousands of digits is a plain ValueError.
            what = f"is not JSON ({error})"
            raise ConceptError(f"{path}: {what}; mend the file", what=what, fix="mend the file") from error


def is_photo(path: str) -> bool:
    """Return whether a file name is that of a photograph that is read (masks are not)."""
    return path.lower().endswith(PHOTO_SUFFIXES) and not is_mask(path)


def is_mask(path: str) -> bool:
    """Return whether a file name says that the picture is a segmentation mask."""
    return "_mask" in path.rpartition("/")[2].lower()


def is_other_picture(path: str) -> bool:
    """Return whether a file name is that of a picture in a format that is not read."""
    return path.lower().endswith(OTHER_PICTURE_SUFFIXES)


def natural(path: str) -> list[tuple[int, int | str]]:
    """Return a sort key under which "2.png" comes before "10.png"."""
    key: list[tuple[int, int | str]] = []
    digits = ""
    for letter in path.lower() + "\0":
        if letter.isdecimal() and letter.isascii():
            digits += letter
            continue
        if digits:
            key.append((0, int(digits)))
            digits = ""
        key.append((1, letter))
    return key


def suggestion(unknown: str, known: Iterable[str]) -> str:
    """Return what to do about an unknown key."""
    known = sorted(known)
    close = difflib.get_close_matches(unknown.lower(), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def check_pair(edit: EditPair, *, where: str, problems: Problems) -> None:
    """Warn about an edit pair whose pictures differ in shape: the edit would teach stretching."""
    (w, h), (v, g) = edit.source.size, edit.target.size
    if abs(w * g - v * h) > 0.02 * w * g:
        problems.warn(
            where,
            f"source is {w}x{h} and target {v}x{g} pixels, the shapes differ",
            consumer="learning edits",
            fix="crop both to the same shape",
        )


def check_photographs(images: list[ConceptImage], *, where: str, problems: Problems) -> None:
    """Add problems about the number of photographs."""
    if not images:
        problems.error(
            where, "holds no usable photograph", consumer="everything that is learned", fix="add about ten photographs"
        )
    elif len(images) < FEW_PHOTOGRAPHS:
        problems.warn(
            where,
            f"holds {len(images)} photographs, about ten are wanted",
            consumer="recognition and drawing",
            fix="add photographs from other sides, places and lights",
        )


def refuse_shared(images: Iterable[ConceptImage], *, others: Mapping[str, str], what: str, problems: Problems) -> None:
    """Add an error for every picture whose pixels also occur in `others` (digest to path)."""
    for image in images:
        if (other := others.get(image.digest)) is not None:
            problems.error(
                image.path,
                f"has the same pixels as {other}, {what}",
                consumer="honest training and scores",
                fix="remove one of the two",
            )
