"""What a layout is: how it is known, which concepts lie there, how one is read.

Every module of this package that reads a layout ends in such a value; `load.py` holds the list of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from omnifarm.concept.datasets.held_out import HeldOut
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader
from omnifarm.concept.sources import FileSource
from omnifarm.concept.spec import ConceptSpec

ReadConcept = Callable[[Reader, str, Problems], ConceptSpec | None]
"""(reader, place, problems) -> the concept, or None when `problems` holds an error."""
ReadHeldOut = Callable[[Reader, str, Problems], HeldOut | None]
"""(reader, place, problems) -> what is held out, or None when `problems` holds an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One way data sets lay out their files."""

    name: str
    """As written before a place: `yollava+/data/yollava-data`."""
    is_root: Callable[[FileSource], bool]
    """Whether a source is the root of this layout."""
    places: Callable[[Reader], list[str]]
    """What `read` is called with, one entry a concept."""
    read: ReadConcept
    """Reads what is learned from."""
    held_out: ReadHeldOut | None = None
    """Reads what is only scored on; None where the layout has nothing of the kind."""
    concept_name: Callable[[Reader, str], str] = lambda reader, place: place
    """The concept's name for messages, before it was read."""
