"""How alike sets of pictures are, from embeddings.

Shape letters: G generated pictures, R reference pictures, D width. Embeddings have length 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
"""(pictures, D), every row of length 1."""


def mean_similarity(generated_GD: Embeddings, references_RD: Embeddings) -> float:
    """Return the mean cosine over all G x R pairs, -1..1 (CLIP-I, DINO and Face-Simi alike)."""
    return float((generated_GD @ references_RD.T).mean())


def mean_similarity_within(references_RD: Embeddings, *, with_self: bool = False) -> float:
    """Return the mean cosine over the pairs of one set: the "Real Images" row.

    The public script counts every picture against itself too (`with_self`), which adds about (1 - s) / R. NaN for a
    single picture without itself.
    """
    similarity = references_RD @ references_RD.T
    if with_self:
        return float(similarity.mean())
    count = len(similarity)
    return float((similarity.sum() - np.trace(similarity)) / (count * (count - 1))) if count > 1 else float("nan")


def nearest(generated_GD: Embeddings, references_RD: Embeddings) -> NDArray[np.float32]:
    """Return for every generated picture its cosine to the nearest reference, (G,): the copy detector.

    A system that repeats a training photograph has the best CLIP-I; here it shows as values near 1.
    """
    return np.asarray((generated_GD @ references_RD.T).max(axis=1), np.float32)


def normalised(rows: NDArray[Any]) -> Embeddings:
    """Return rows scaled to length 1."""
    rows = np.asarray(rows, np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12), np.float32)
