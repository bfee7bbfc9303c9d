"""Hard negatives by image embedding: of all pictures without a concept, those that look most like it.

    mine_hard_negatives(...)      ranks the pool and the other concepts' photographs
    write / attach                `hard_negatives.json` of a set: what was found, and what training makes of it

The embedding is passed in; `omnifarm concept negatives` passes the backbone's own vision tower.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader
from omnifarm.concept.sources import below
from omnifarm.concept.spec import ConceptImage, ConceptSpec, Negative
from omnifarm.errors import ConceptError

FILE = "hard_negatives.json"
"""File of a set that names hard negatives."""

Embed = Callable[[ConceptSpec, ConceptImage], NDArray[np.float32]]
"""(concept whose source holds the picture, picture) -> (E,) numbers; pictures alike have vectors of like direction."""

_SCHEMA_VERSION = 1
_CONSUMER = "telling the concept from what looks like it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """A picture and how alike it looks."""

    image: ConceptImage
    """The picture."""
    similarity: float
    """Cosine to the nearest photograph of the concept, all vectors centred; -1..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mining:
    """What was found for one concept."""

    hard: tuple[Ranked, ...]
    """The most alike, nearest first."""
    suspects: tuple[Ranked, ...]
    """Nearer to a photograph than any two photographs are to each other: may show the concept itself; not used."""


def mine_hard_negatives(spec: ConceptSpec, others: Sequence[ConceptSpec], *, embed: Embed, keep: int) -> Mining:
    """Rank every picture that does not show a concept by how much it looks like its photographs.

    Args:
        spec: The concept; its negatives are the pool.
        others: Other concepts of the set, whose photographs are ranked too.
        embed: See `Embed`.
        keep: Pictures wanted, at least 1.

    Raises:
        ConceptError: There is nothing to rank, or a picture cannot be read.
    """
    own = {image.digest for image in spec.images}
    pool: dict[str, tuple[ConceptSpec, ConceptImage]] = {}
    own_pool = (spec, [one.image for one in spec.negatives])
    for holder, images in (own_pool, *((other, other.images) for other in others if other.name != spec.name)):
        for image in images:
            if image.digest not in own:
                pool.setdefault(image.digest, (holder, image))
    if not pool:
        raise ConceptError(
            f"concept {spec.name!r} has no pictures to rank: put pictures without it into negatives/ of the set, or "
            "learn it together with other concepts",
            concept=spec.name,
        )
    photographs = np.stack([embed(spec, image) for image in spec.images]).astype(np.float64)
    candidates = np.stack([embed(holder, image) for holder, image in pool.values()]).astype(np.float64)
    # Towers give all pictures a large common part; without it, cosines spread.
    mean = np.concatenate([photographs, candidates]).mean(axis=0)
    photographs, candidates = _unit(photographs - mean), _unit(candidates - mean)
    similarity = (candidates @ photographs.T).max(axis=1)
    among = (photographs @ photographs.T)[~np.eye(len(photographs), dtype=bool)]
    too_near = float(among.max()) if among.size else 1.0
    ranked = sorted(
        (
            Ranked(image=image, similarity=float(value))
            for (_, image), value in zip(pool.values(), similarity, strict=True)
        ),
        key=lambda one: (-one.similarity, one.image.path),
    )
    suspects = [one for one in ranked if one.similarity > too_near]
    return Mining(hard=tuple(ranked[len(suspects) :][:keep]), suspects=tuple(suspects))


def to_json(found: Mapping[str, Mining], *, embedding: str) -> dict[str, Any]:
    """Return what `hard_negatives.json` holds.

    Args:
        found: By concept name.
        embedding: What ranked them, for the record.
    """
    concepts = {
        name: [{"path": one.image.path, "digest": one.image.digest, "similarity": round(one.similarity, 4)} for one in mining.hard]
        for name, mining in found.items()
    }  # fmt: skip
    return {"schema_version": _SCHEMA_VERSION, "embedding": embedding, "concepts": concepts}


def attach_hard_negatives(
    reader: Reader, specs: Mapping[str, ConceptSpec], problems: Mapping[str, Problems]
) -> dict[str, ConceptSpec]:
    """Make the pictures that `hard_negatives.json` names hard negatives of their concepts.

    Args:
        reader: Over the set.
        specs: The concepts that can be learned, by name; not changed.
        problems: One collection for each concept of the set, added to.
    """
    if FILE not in reader.source.paths():
        return dict(specs)
    try:
        named = _named(reader)
    except ConceptError as error:
        what = str(error.facts.get("what", error.message))
        for collected in problems.values():
            collected.error(FILE, what, consumer=_CONSUMER, fix="run `omnifarm concept negatives` again or delete it")
        return dict(specs)
    return {name: _with_hard(reader, spec, named.get(name, {}), problems[name]) for name, spec in specs.items()}


def _with_hard(reader: Reader, spec: ConceptSpec, named: Mapping[str, str], problems: Problems) -> ConceptSpec:
    hard = []
    own = {image.digest for image in spec.images}
    for path, digest in named.items():
        exists = path in below(reader.source.paths(), path)
        image = reader.image(path, problems=problems, consumer=_CONSUMER) if exists else None
        if not exists or (image is not None and image.digest != digest):
            problems.error(
                f"{FILE}: {spec.name}",
                f"names {path!r}, which {'was changed since' if exists else 'does not exist'}",
                consumer=_CONSUMER,
                fix="run `omnifarm concept negatives` again",
            )
        elif image is not None and image.digest not in own:
            hard.append(Negative(image=image, kind="hard"))
    found = {negative.image.digest for negative in hard}
    rest = [negative for negative in spec.negatives if negative.image.digest not in found]
    return replace(spec, negatives=(*hard, *rest))


def _named(reader: Reader) -> dict[str, dict[str, str]]:
    values = reader.json(FILE)
    try:
        if values["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"version {values['schema_version']!r}")
        return {
            str(name): {str(one["path"]): str(one["digest"]) for one in listed}
            for name, listed in values["concepts"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"does not hold hard negatives of version {_SCHEMA_VERSION} ({type(error).__name__}: {error})"
        raise ConceptError(f"{FILE}: {what}", what=what) from error


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float64)
