"""Gives concepts the removal pairs that lie beside them: `edit_pairs/pairs.parquet` of a set in any layout."""

from collections.abc import Mapping
from dataclasses import replace

from omnifarm.concept.edit_pairs.table import FILE, FOLDER, Pair, PairState, read_pairs
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader
from omnifarm.concept.sources import MAX_TEXT_BYTES
from omnifarm.concept.spec import ConceptImage, ConceptSpec, EditPair
from omnifarm.errors import ConceptError

_PATH = f"{FOLDER}/{FILE}"
_CONSUMER = "learning edits"


def attach_edit_pairs(
    reader: Reader, specs: Mapping[str, ConceptSpec], problems: Mapping[str, Problems]
) -> dict[str, ConceptSpec]:
    """Add every accepted pair to its concept's edits; warn of those that wait for a person or have lost a picture.

    Args:
        reader: Over the set.
        specs: The concepts that can be learned, by name; not changed.
        problems: One collection for each concept of the set, added to.
    """
    if _PATH not in reader.source.paths():
        return dict(specs)
    try:
        pairs = read_pairs(reader.source.read(_PATH, max_bytes=MAX_TEXT_BYTES), where=_PATH)
    except ConceptError as error:
        for collected in problems.values():
            collected.error(_PATH, error.message, consumer=_CONSUMER, fix="build it again or delete it")
        return dict(specs)
    given = {}
    for name, spec in specs.items():
        own = [pair for pair in pairs if pair.concept == name]
        edits = [
            edit for pair in own if pair.state.is_learned and (edit := _edit(reader, pair, problems[name])) is not None
        ]
        unseen = sum(pair.state is PairState.AUTO_PASS for pair in own)
        if unseen:
            problems[name].warn(
                _PATH,
                f"holds {unseen} pairs of {name!r} that passed the automatic check and wait for somebody to look at them",
                consumer=_CONSUMER,
                fix=f"open {FOLDER}/review.html, decide, and run jobs/build_edit_pairs.py again",
            )
        given[name] = replace(spec, edits=(*spec.edits, *edits))
    return given


def _edit(reader: Reader, pair: Pair, problems: Problems) -> EditPair | None:
    source = _picture(reader, pair.source, pair.source_digest, problems)
    target = source if not pair.target else _picture(reader, f"{FOLDER}/{pair.target}", pair.target_digest, problems)
    if source is None or target is None:
        return None
    return EditPair(source=source, target=target, instruction=pair.instruction)


def _picture(reader: Reader, path: str, digest: str, problems: Problems) -> ConceptImage | None:
    """Return a picture of a pair; None, with a warning, when it is not the one the pair was made with."""
    image = None
    if path not in reader.source.paths():
        what = f"names {path!r}, which does not exist"
    else:
        image = reader.image(path, problems=problems, consumer=_CONSUMER)
        if image is None or image.digest == digest:
            return image
        what = f"has a pair made with {path!r}, which was changed since"
    problems.warn(
        _PATH,
        f"{what}; the pair is left out",
        consumer=_CONSUMER,
        fix="run jobs/build_edit_pairs.py again: it drops the pairs of photographs that are gone and makes what is missing",
    )
    return None
