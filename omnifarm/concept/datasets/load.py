"""From a path or URL to concepts: finds out which layout lies there and reads every concept of it.

The layout is found by looking; `yollava+/data/set` names it instead. One concept that cannot be read does not touch
the others: it comes back as its error.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from omnifarm.concept.datasets import dreambooth, mcllava, plain, unifybench, yochameleon, yollava
from omnifarm.concept.datasets.held_out import HeldOut
from omnifarm.concept.datasets.layout import Layout
from omnifarm.concept.edit_pairs.attach import attach_edit_pairs
from omnifarm.concept.hard_negatives import attach_hard_negatives
from omnifarm.concept.negatives import share_negatives
from omnifarm.concept.problems import Problem, Problems, as_error
from omnifarm.concept.reading import Reader, is_photo, natural, refuse_shared, suggestion
from omnifarm.concept.sources import FileSource, SubSource, below, open_source
from omnifarm.concept.spec import ConceptImage, ConceptSpec
from omnifarm.errors import ConceptError

LAYOUTS: tuple[Layout, ...] = (
    mcllava.LAYOUT,
    unifybench.PLUS,
    unifybench.LAYOUT,
    plain.LAYOUT,
    yochameleon.LAYOUT,
    yollava.LAYOUT,
    dreambooth.LAYOUT,
)
"""Every layout, in the order in which they are looked for: the more particular before the more general."""


_MAX_HINTS = 50


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
        url: A folder in any of the layouts, or a store URL (`s3://bucket/prefix`) of such; `yollava+` and the like
            before it names the layout.

    Returns:
        (name, concept or the reason why it cannot be learned), ordered by name. Names are unique.

    Raises:
        ConceptError: Nothing there looks like a concept, or there is no such layout.
        StoreError: The store does not answer.
    """
    return [(one.name, one.spec or as_error(one.name, one.problems)) for one in read_place(url)]


def load_held_out(url: str) -> list[tuple[str, HeldOut | ConceptError]]:
    """Read what every concept at a place is scored on; see `load_concepts`.

    Layouts without test data (plain folders) give an empty `HeldOut` for each concept.
    """
    return [(name, held_out or as_error(name, problems)) for name, held_out, problems in _read_held_out(url)]


def held_out_problems(url: str) -> dict[str, list[Problem]]:
    """Return what is wrong with the held-out data of each concept at a place, by name."""
    return {name: problems for name, _, problems in _read_held_out(url)}


def read_place(url: str) -> list[Reading]:
    """Read every concept of a place with its problems, ordered by name; see `load_concepts`."""
    layout, source = open_place(url)
    return read_all(source, layout=layout)


def open_place(url: str) -> tuple[Layout, FileSource]:
    """Open a place and find its layout.

    Raises:
        ConceptError: As `load_concepts`.
        StoreError: The store does not answer.
    """
    name, rest = split_layout(url)
    if not name:
        source = open_source(rest)
        return find_layout(source), source
    layout = next((one for one in LAYOUTS if one.name == name), None)
    if layout is None:
        known = [one.name for one in LAYOUTS]
        raise ConceptError(f"no layout is called {name!r}: {suggestion(name, known)}; known are {', '.join(known)}")
    source = open_source(rest)
    if not layout.places(Reader(source)):
        raise _nothing_found(source, f"in the layout {name}")
    return layout, source


def find_layout(source: FileSource) -> Layout:
    """Return the layout of a source.

    Raises:
        ConceptError: It has none.
    """
    found = next((layout for layout in LAYOUTS if layout.is_root(source)), None)
    if found is None:
        raise _nothing_found(source, "in a known layout")
    return found


def read_all(source: FileSource, *, layout: Layout | None = None) -> list[Reading]:
    """Read every concept of a source with its problems, ordered by name.

    Args:
        source: Where the files lie.
        layout: None to find it out.
    """
    layout = layout or find_layout(source)
    reader = Reader(source)
    readings = []
    places: dict[str, str] = {}
    for place in layout.places(reader):
        problems = Problems(concept=layout.concept_name(reader, place))
        spec = layout.read(reader, place, problems)
        name = spec.name if spec else problems.concept
        places[name] = place
        readings.append(Reading(name=name, spec=spec, problems=tuple(problems.found)))
    readings = _unique(sorted(readings, key=lambda one: natural(one.name)))
    return _finished(reader, readings, held_out=lambda name: _held_out_pictures(layout, reader, places[name]))


def _read_held_out(url: str) -> list[tuple[str, HeldOut | None, list[Problem]]]:
    layout, source = open_place(url)
    reader = Reader(source)
    found: list[tuple[str, HeldOut | None, list[Problem]]] = []
    for place in layout.places(reader):
        name = layout.concept_name(reader, place)
        problems = Problems(concept=name)
        held_out = HeldOut(name=name) if layout.held_out is None else layout.held_out(reader, place, problems)
        found.append((name, held_out, problems.found))
    return sorted(found, key=lambda one: natural(one[0]))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    """The pictures a concept is scored on, digest to path."""

    shown: dict[str, str]
    """Pictures of the concept and sources of edits."""
    asked: dict[str, str]
    """Pictures of questions, wherever they lie."""


def _held_out_pictures(layout: Layout, reader: Reader, place: str) -> _Scored:
    asked: list[ConceptImage] = []
    if layout.held_out is None:
        inside = f"{place}/test/" if place else "test/"
        paths = filter(is_photo, below(reader.source.paths(), inside))
        images = reader.images(paths, problems=Problems(), consumer="scoring")
    else:
        held_out = layout.held_out(reader, place, Problems())
        images = [*held_out.images, *(one.source for one in held_out.edits)] if held_out else []
        asked = [one.image for one in held_out.questions if one.image is not None] if held_out else []
    shown = {image.digest: image.path for image in images}
    return _Scored(shown=shown, asked={one.digest: one.path for one in asked if one.digest not in shown})


def _finished(reader: Reader, readings: list[Reading], *, held_out: Callable[[str], _Scored]) -> list[Reading]:
    """Add what concepts of a set share and what lies beside every layout; refuse what is also scored on."""
    all_problems = {one.name: Problems(concept=one.name, found=list(one.problems)) for one in readings}
    specs = {one.name: one.spec for one in readings if one.spec is not None}
    for step in (share_negatives, attach_hard_negatives, attach_edit_pairs):
        specs = step(reader, specs, all_problems)
    for one in readings:
        if one.spec is None:
            continue
        scored, learned = held_out(one.name), list(specs[one.name].all_images())
        # Public recognition lists ask about a set's own negatives again; these teach nothing about the concept's looks.
        without = {image.digest for image in _without_the_concept(one.spec)}
        own = [image for image in learned if image.digest not in without]
        for images, others in ((learned, scored.shown), (own, scored.asked)):
            refuse_shared(images, others=others, what="which is held out for scoring", problems=all_problems[one.name])
    return [
        Reading(
            name=one.name,
            spec=None if all_problems[one.name].has_errors else specs.get(one.name),
            problems=tuple(all_problems[one.name].found),
        )
        for one in readings
    ]


def _without_the_concept(spec: ConceptSpec) -> Iterator[ConceptImage]:
    yield from (one.image for one in spec.negatives)
    for qa in spec.qa:
        if qa.kind == "recognition" and qa.image is not None and qa.answer.lower().startswith("no"):
            yield qa.image


def _unique(readings: Iterable[Reading]) -> list[Reading]:
    unique: dict[str, Reading] = {}
    for one in readings:
        if one.name not in unique:
            unique[one.name] = one
            continue
        problems = Problems(concept=one.name, found=[*unique[one.name].problems, *one.problems])
        problems.error(
            one.name,
            f"the name {one.name!r} is used by two folders",
            consumer="telling concepts apart",
            fix="give one of them another `name:` or folder name",
        )
        unique[one.name] = replace(one, spec=None, problems=tuple(problems.found))
    return list(unique.values())


def split_layout(url: str) -> tuple[str, str]:
    """Split `layout+place` into (layout, place); the layout is "" where none is named.

    A name may itself end in plus signs: `unifybench++` is written `unifybench+++place`. A folder whose own name holds
    a plus sign is a place.
    """
    head = url.partition("/")[0]
    name, plus, _ = head.rpartition("+")
    is_known = any(layout.name == name for layout in LAYOUTS)
    if not plus or not name or "." in name or (not is_known and Path(url).expanduser().is_dir()):
        return "", url
    return name, url[len(name) + 1 :]


def _nothing_found(source: FileSource, what: str) -> ConceptError:
    paths = source.paths()
    num_photos = sum(map(is_photo, paths))
    below = sorted({path.partition("/")[0] for path in paths if "/" in path}, key=natural)
    for folder in below[:_MAX_HINTS]:
        inside = SubSource(source, folder)
        layout = next((layout for layout in LAYOUTS if layout.is_root(inside)), None)
        if layout is not None:
            fix = f"{inside.url} is a {layout.name} set: give that path"
            break
    else:
        fix = (
            "put a concept.yaml with a line such as `class: dog` beside the photographs of each concept, or name the "
            f"layout as in dreambooth+{source.url}"
        )
    return ConceptError(
        f"expected concepts {what} at {source.url}, found {num_photos} photographs but neither a concept.yaml nor the "
        f"folders of another layout; {fix}",
        url=source.url,
        num_photos=num_photos,
    )
