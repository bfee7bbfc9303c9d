"""From a path or URL to concepts: finds out which layout lies there and reads every concept of it.

One concept that cannot be read does not touch the others: it comes back as its error.
"""

from dataclasses import dataclass, replace

from omnifarm.concept.datasets import plain, unifybench
from omnifarm.concept.problems import Problem, Problems, as_error
from omnifarm.concept.reading import Reader, is_photo, natural
from omnifarm.concept.sources import FileSource, open_source
from omnifarm.concept.spec import ConceptSpec, Negative
from omnifarm.errors import ConceptError

BORROWED_PER_CONCEPT = 4
"""Photographs of each other concept of a set that serve as negatives to a concept without any."""
MAX_BORROWED = 100
"""Borrowed negatives per concept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What came of one concept."""

    name: str
    """The concept's name, or its folder's when the name cannot be used."""
    spec: ConceptSpec | None
    """The concept; None when `problems` holds an error."""
    problems: tuple[Problem, ...]
    """Everything found wrong."""


def load_concepts(url: str) -> list[tuple[str, ConceptSpec | ConceptError]]:
    """Read every concept at a place.

    Args:
        url: A concept folder, a folder of them, a UnifyBench folder, or a store URL (`s3://bucket/prefix`) of such.

    Returns:
        (name, concept or the reason why it cannot be learned), ordered by name. Names are unique.

    Raises:
        ConceptError: Nothing there looks like a concept.
        StoreError: The store does not answer.
    """
    return [(one.name, one.spec or as_error(one.name, one.problems)) for one in read_all(open_source(url))]


def read_all(source: FileSource) -> list[Reading]:
    """Read every concept of a source with its problems, ordered by name; see `load_concepts`."""
    reader = Reader(source)
    if unifybench.is_root(source):
        readings = [_read_unifybench(reader, name) for name in unifybench.names(reader)]
    elif folders := plain.folders(source):
        readings = [_read_plain(reader, folder) for folder in folders]
        if "" not in folders:
            readings = _share_negatives(reader, readings)
    else:
        raise _nothing_found(source)
    return _unique(sorted(readings, key=lambda one: natural(one.name)))


def _read_plain(reader: Reader, folder: str) -> Reading:
    problems = Problems(concept=plain.folder_name(reader, folder))
    spec = plain.read(reader, folder, problems=problems)
    return Reading(name=spec.name if spec else problems.concept, spec=spec, problems=tuple(problems.found))


def _read_unifybench(reader: Reader, name: str) -> Reading:
    problems = Problems(concept=name)
    spec = unifybench.read(reader, name, problems=problems)
    return Reading(name=name, spec=spec, problems=tuple(problems.found))


def _share_negatives(reader: Reader, readings: list[Reading]) -> list[Reading]:
    """Give a set's `negatives/` to every concept, and other concepts' photographs to those still without."""
    consumer = "saying No when the concept is not in a picture"
    for_all = Problems()
    paths = [path for path in reader.source.paths() if path.startswith("negatives/") and is_photo(path)]
    common = [
        Negative(image=image, kind="easy")
        for image in reader.images(sorted(paths, key=natural), problems=for_all, consumer=consumer)
    ]
    specs = [one.spec for one in readings if one.spec is not None]
    shared = []
    for one in readings:
        problems = Problems(concept=one.name, found=list(one.problems))
        spec = one.spec
        if spec is not None:
            own = {image.digest for image in spec.images}
            extra = [negative for negative in common if negative.image.digest not in own]
            if not extra and not spec.negatives:
                extra = _borrowed(spec, specs)
            spec = replace(spec, negatives=(*spec.negatives, *extra))
        # A damaged picture of the common folder concerns every concept that would have used it.
        problems.found += [replace(problem, concept=one.name) for problem in for_all.found]
        shared.append(
            Reading(name=one.name, spec=None if problems.has_errors else spec, problems=tuple(problems.found))
        )
    return shared


def _borrowed(spec: ConceptSpec, specs: list[ConceptSpec]) -> list[Negative]:
    own = {image.digest for image in spec.images}
    return [
        Negative(image=image, kind="hard" if other.class_noun == spec.class_noun else "easy")
        for other in specs
        if other.name != spec.name
        for image in other.images[:BORROWED_PER_CONCEPT]
        if image.digest not in own
    ][:MAX_BORROWED]


def _unique(readings: list[Reading]) -> list[Reading]:
    seen: set[str] = set()
    unique: list[Reading] = []
    for one in readings:
        if one.name in seen:
            problems = Problems(concept=one.name, found=list(one.problems))
            problems.error(
                one.name,
                f"the name {one.name!r} is used by two folders",
                consumer="telling concepts apart",
                fix="give one of them another `name:`",
            )
            first = next(index for index, other in enumerate(unique) if other.name == one.name)
            merged = (*unique[first].problems, *problems.found)
            unique[first] = Reading(name=one.name, spec=None, problems=merged)
            continue
        seen.add(one.name)
        unique.append(one)
    return unique


def _nothing_found(source: FileSource) -> ConceptError:
    num_photos = sum(map(is_photo, source.paths()))
    return ConceptError(
        f"expected concepts at {source.url}, found {num_photos} photographs but neither a concept.yaml nor UnifyBench's "
        "concept/train/; put a concept.yaml with a line such as `class: dog` beside the photographs of each concept",
        url=source.url,
        num_photos=num_photos,
    )
