"""What `omnifarm miniature evaluate` compares: learned concepts, and three ways of doing without learning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.image_ops import to_image, to_tensor
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.repository import ConceptRepository
from omnifarm.miniature.benchmark import NAME, BenchmarkConcept
from omnifarm.miniature.measures import Pixels
from omnifarm.miniature.render import SIZE, render
from omnifarm.serving.engine import Engine
from omnifarm.serving.prompted import Known, Prompted
from omnifarm.store.local import LocalStore

BASELINES = ("tp", "ip", "none")
"""The description in the prompt; one reference photo in the prompt; nothing but the class."""

_MAX_TOKENS = 48


class LearnedSystem:
    """A concept as it was learned, through the serving engine.

    Args:
        loaded: The backbone.
        store: Folder of the store that holds the artifact.
        name: The concept's bare name.
    """

    def __init__(self, loaded: LoadedBackbone, *, store: Path, name: str) -> None:
        self._engine = Engine(loaded, ConceptRepository(LocalStore(store)))
        self._identifier = f"<{name}>"

    def ask(self, question: str, picture: Pixels | None) -> str:
        """Answer a question."""
        image = None if picture is None else Image.fromarray(picture)
        answer = self._engine.ask(self._named(question), image=image, max_tokens=_MAX_TOKENS)
        return answer.text.replace(self._identifier, NAME)

    def draw(self, prompt: str, *, replay: bool, seed: int) -> Pixels:
        """Draw a picture, with unified replay or without."""
        mode = "unified" if replay else "off"
        return np.asarray(self._engine.generate(self._named(prompt), replay=mode, seed=seed).image)

    def edit(self, picture: Pixels, instruction: str, *, seed: int) -> Pixels:
        """Change a picture."""
        return np.asarray(self._engine.edit(Image.fromarray(picture), self._named(instruction), seed=seed).image)

    def _named(self, text: str) -> str:
        return text.replace(NAME, self._identifier)


class PromptedSystem:
    """A concept that was not learned: what is known about it stands in front of every request.

    Args:
        loaded: The backbone.
        concept: The concept.
        kind: One of `BASELINES`.
    """

    def __init__(self, loaded: LoadedBackbone, concept: BenchmarkConcept, *, kind: Literal["tp", "ip", "none"]) -> None:
        self._prompted = Prompted(loaded)
        self._concept, self._kind = concept, kind
        self._generation = SamplingOptions.for_generation(loaded.config)
        self._editing = SamplingOptions.for_editing(loaded.config)

    def ask(self, question: str, picture: Pixels | None) -> str:
        """Answer a question."""
        image = None if picture is None else Image.fromarray(picture)
        return self._prompted.ask(self._said(question), known=self._known(), image=image, max_tokens=_MAX_TOKENS)

    def draw(self, prompt: str, *, replay: bool, seed: int) -> Pixels:
        """Draw a picture; baselines replay nothing."""
        drawn = self._prompted.draw(
            self._said(prompt), known=self._known(), size=(SIZE, SIZE), options=self._generation, seed=seed
        )
        return np.asarray(drawn)

    def edit(self, picture: Pixels, instruction: str, *, seed: int) -> Pixels:
        """Change a picture."""
        source = Image.fromarray(picture)
        return np.asarray(
            self._prompted.edit(source, self._said(instruction), known=self._known(), options=self._editing, seed=seed)
        )

    def _known(self) -> Known:
        if self._kind == "tp":
            return [" ".join((self._concept.info, *self._concept.extra_info))]
        if self._kind == "ip":
            # By day if there is such a photo: colours at night are nobody's own.
            photo = next((scene for scene in self._concept.train if scene.light == "day"), self._concept.train[0])
            return [f"{NAME} is", Image.fromarray(render(photo))]
        return []

    def _said(self, text: str) -> str:
        return text if self._kind != "none" else text.replace(NAME, f"the {self._concept.identity.noun}")


def round_trip(loaded: LoadedBackbone, picture: Pixels) -> Pixels:
    """Encode and decode a picture: the best that this codec lets any drawing be."""
    codec = loaded.autoencoder
    with torch.inference_mode():
        return np.asarray(to_image(codec.decode(codec.encode(to_tensor(Image.fromarray(picture))))))


def sheet(rows: Sequence[Sequence[Pixels]]) -> Image.Image:
    """Lay pictures out, one row a concept; short rows are filled with white."""
    width = max(map(len, rows))
    blank = np.full((SIZE, SIZE, 3), 255, np.uint8)
    padded = [np.concatenate([*row, *([blank] * (width - len(row)))], axis=1) for row in rows]
    return Image.fromarray(np.concatenate(padded))
