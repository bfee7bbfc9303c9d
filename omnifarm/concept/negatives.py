"""Pictures without a concept: lent by the set, borrowed from other concepts, and the most alike among them.

A set's own `negatives/` folder, the pool, serves every concept. A concept that has none borrows photographs of the
others. `hard_negatives.json`, written by `omnifarm concept negatives`, names the pictures that look most like each
concept; training asks about those as often as about all others together.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader, is_photo, natural
from omnifarm.concept.spec import ConceptSpec, Negative

POOL = "negatives/"
"""Folder of a set whose pictures show none of its concepts."""
BORROWED_PER_CONCEPT = 4
"""Photographs of each other concept of a set that serve as negatives to a concept without any."""
MAX_BORROWED = 100
"""Borrowed negatives per concept."""

_CONSUMER = "saying No when the concept is not in a picture"


def share_negatives(
    reader: Reader, specs: Mapping[str, ConceptSpec], problems: Mapping[str, Problems]
) -> dict[str, ConceptSpec]:
    """Give a set's `negatives/` to every concept, and other concepts' photographs to those still without.

    Args:
        reader: Over the set.
        specs: The concepts that can be learned, by name; not changed.
        problems: One collection for each concept of the set, added to.

    Returns:
        The concepts with their negatives.
    """
    if _is_one_concept(specs):
        return dict(specs)
    for_all = Problems()
    paths = sorted((path for path in reader.source.paths() if path.startswith(POOL) and is_photo(path)), key=natural)
    pool = [Negative(image=image) for image in reader.images(paths, problems=for_all, consumer=_CONSUMER)]
    # A damaged picture of the pool concerns every concept that would have used it.
    for name, collected in problems.items():
        collected.found += [replace(problem, concept=name) for problem in for_all.found]
    shared = {}
    for name, spec in specs.items():
        known = {picture.digest for picture in spec.all_images()}
        extra = [negative for negative in pool if negative.image.digest not in known]
        if not extra and not spec.negatives:
            extra = borrowed(spec, specs)
        shared[name] = replace(spec, negatives=(*spec.negatives, *extra))
    return shared


def borrowed(spec: ConceptSpec, others: Mapping[str, ConceptSpec]) -> list[Negative]:
    """Return photographs of other concepts as negatives; those of the same class are look-alikes."""
    own = {picture.digest for picture in spec.all_images()}
    lent = (
        Negative(image=image, kind="hard" if other.class_noun == spec.class_noun else "easy")
        for other in others.values()
        if other.name != spec.name
        for image in other.images[:BORROWED_PER_CONCEPT]
        if image.digest not in own
    )
    # Not further: with thousands of concepts nearly all of them are never looked at.
    return list(islice(lent, MAX_BORROWED))


def _is_one_concept(specs: Mapping[str, ConceptSpec]) -> bool:
    """Return whether the source is itself a concept's folder, whose `negatives/` its layout has read."""
    return len(specs) == 1 and any(
        negative.image.path.startswith(POOL) for spec in specs.values() for negative in spec.negatives
    )
