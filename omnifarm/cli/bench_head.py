"""MyVLM-style: a concept head beside the model decides whether the concept is in a picture, and one vector says who.

The head is a linear classifier over the vision tower's features, taught with the concept's photographs and negatives.
Where it sees the concept, one learned vector joins the prompt; where it does not, the model is asked about the class
noun. Only what is asked about a picture is answered. A re-implementation: without MyVLM's attention regulariser, and
the vector stands before the picture instead of among its features.

Shapes: P pictures, V width of the vision tower.
"""

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.bench.rows import Row
from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import BenchConcept
from omnifarm.cli.bench_systems import LearnedSystem, PromptedSystem
from omnifarm.concept.prepared import prepare
from omnifarm.errors import ServingError
from omnifarm.store.base import Store

_ASKS_FOR_PRESENCE = re.compile(r"(is|are|can|could|do|does)\b.*\b(photo|picture|image|snapshot|here)\b", re.I | re.S)


class HeadedSystem:
    """A head, one learned vector, and the plain model where the head says no.

    Args:
        loaded: The backbone.
        store: Holds the artifacts of this row's training.
        row: Of the table.
    """

    def __init__(self, loaded: LoadedBackbone, *, store: Store, row: Row) -> None:
        self._loaded = loaded
        self._learned = LearnedSystem(loaded, store=store, row=row)
        self._plain = PromptedSystem(loaded, row=replace(row, prompt="class"))

    def fit(self, concept: BenchConcept) -> None:
        """Teach the head.

        Raises:
            ServingError: The concept has no picture without it.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._learned.fit(concept)
        self._plain.fit(concept)
        self._concept = concept
        spec = concept.spec
        if not spec.negatives:
            raise ServingError(f"the head of {spec.name} needs pictures without it; add negatives to the data")
        pictures = [*spec.images, *(one.image for one in spec.negatives)]
        known_PV = np.stack([self._features(spec.open_image(picture)) for picture in pictures])
        shows = [True] * len(spec.images) + [False] * len(spec.negatives)
        self._head = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        self._head.fit(known_PV, shows)

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question about a picture; whether the concept is in it is the head's word alone."""
        if picture is None:
            raise ServingError("MyVLM-style answers questions about pictures only")
        is_there = bool(self._head.predict(self._features(picture)[None])[0])
        if self._concept.identifier in question and _ASKS_FOR_PRESENCE.match(question):
            return Reply(text="Yes." if is_there else "No.")
        return (self._learned if is_there else self._plain).answer(question, picture)

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Not done: only questions were learned."""
        raise ServingError("MyVLM-style draws nothing")

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Not done: only questions were learned."""
        raise ServingError("MyVLM-style edits nothing")

    def _features(self, picture: Image.Image) -> NDArray[np.float32]:
        """Return a picture's mean features, (V,)."""
        mean: NDArray[np.float32] = prepare(self._loaded, picture).features.float().mean(dim=0).numpy()
        return mean
