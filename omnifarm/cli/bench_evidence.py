"""What a report shows of learned soft tokens themselves: their tables, and where identifiers look."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.bench.data.load import BenchData
from omnifarm.bench.report.looks import Look
from omnifarm.bench.tasks import BenchConcept
from omnifarm.concept.images import pixel_digest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.errors import NotFoundError
from omnifarm.miniature.render import render, subject_mask
from omnifarm.serving.looking import looking_at

SHOWN = ("ours", "without_decoupling", "without_edit_data")
"""Rows whose soft tokens are shown: Fig. 6a compares ours with the second, Fig. 8 with the third."""

Learned = Mapping[str, Mapping[str, SoftTokens]]
"""Row to concept to what was learned."""


def load_learned(repositories: Mapping[str, ConceptRepository], data: BenchData, *, fingerprint: str) -> Learned:
    """Read the soft tokens of rows; concepts that were not learned are left out.

    Args:
        repositories: Row to where its artifacts lie.
        data: Names the concepts.
        fingerprint: Of the backbone.
    """
    found: dict[str, dict[str, SoftTokens]] = {}
    for row, repository in repositories.items():
        for concept in data.benchmark.concepts:
            try:
                _, soft = repository.load(concept.name, fingerprint=fingerprint)
            except NotFoundError:
                continue
            found.setdefault(row, {})[concept.name] = soft
    return found


def looks_of(learned: Learned, data: BenchData, loaded: LoadedBackbone) -> dict[str, dict[str, Look]]:
    """Look at one held-out photograph of every concept with every row's soft tokens."""
    looks: dict[str, dict[str, Look]] = {}
    for row, found in learned.items():
        for name, soft in found.items():
            concept = data.benchmark.concept(name)
            if not concept.held_out.images:
                continue
            photo = concept.held_out.open_image(concept.held_out.images[0])
            weights = looking_at(loaded, photo, concept=soft).mean(dim=0).numpy().astype(np.float32)
            looks.setdefault(row, {})[name] = Look(photo=photo, weights=weights, subject=_subject(concept, photo, data))
    return looks


def _subject(
    concept: BenchConcept, photo: Image.Image, data: BenchData
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]] | None:
    """Return the concept's pixels in a drawn photograph; None in any other."""
    drawn = next((one for one in data.drawn if one.name == concept.name), None)
    digest = pixel_digest(photo)
    if drawn is None:
        return None
    for scene in drawn.test:
        if pixel_digest(Image.fromarray(render(scene))) == digest:
            index = next(place for place, one in enumerate(scene.subjects) if one.identity == drawn.identity)
            return subject_mask(scene, index)
    return None
