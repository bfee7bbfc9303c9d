"""What `omnifarm miniature evaluate` compares: learned concepts, and three ways of doing without learning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.image_ops import to_image, to_tensor
from omnifarm.backbone.kv_cache import Context
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.repository import ConceptRepository
from omnifarm.miniature.benchmark import NAME, BenchmarkConcept
from omnifarm.miniature.measures import Pixels
from omnifarm.miniature.render import SIZE, render
from omnifarm.seeding import generator
from omnifarm.serving.engine import Engine
from omnifarm.serving.runner import Guidance, Runner
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
        self._runner = Runner(loaded)
        self._concept, self._kind = concept, kind
        self._generation = SamplingOptions.for_generation(loaded.config)
        self._editing = SamplingOptions.for_editing(loaded.config)

    def ask(self, question: str, picture: Pixels | None) -> str:
        """Answer a question."""
        context = self._introduced(for_drawing=False)
        if picture is not None:
            context = self._runner.show(context, Image.fromarray(picture))
        context = self._runner.say(context, self._said(question), [])
        return self._runner.write(context, max_tokens=_MAX_TOKENS, temperature=None, generator=None)[0].strip()

    def draw(self, prompt: str, *, replay: bool, seed: int) -> Pixels:
        """Draw a picture; baselines replay nothing."""
        main = self._runner.say(self._introduced(for_drawing=True), self._said(prompt), [])
        guidance = Guidance(main=main, without_text=self._runner.nothing(), without_image=main)
        return self._drawn(guidance, options=self._generation, seed=seed)

    def edit(self, picture: Pixels, instruction: str, *, seed: int) -> Pixels:
        """Change a picture."""
        source, said = Image.fromarray(picture), self._said(instruction)
        latents = self._runner.encode(source, generator=generator(seed, "source"))
        known = self._introduced(for_drawing=True)
        guidance = Guidance(
            main=self._runner.say(self._runner.condition(known, source, latents), said, []),
            without_text=self._runner.condition(self._runner.nothing(), source, latents),
            without_image=self._runner.say(known, said, []),
        )
        return self._drawn(guidance, options=self._editing, seed=seed)

    def _drawn(self, guidance: Guidance, *, options: SamplingOptions, seed: int) -> Pixels:
        drawn = self._runner.denoise(guidance, size=(SIZE, SIZE), options=options, generator=generator(seed, "noise"))
        return np.asarray(self._runner.decode(drawn))

    def _introduced(self, *, for_drawing: bool) -> Context:
        nothing = self._runner.nothing()
        if self._kind == "tp":
            return self._runner.say(nothing, " ".join((self._concept.info, *self._concept.extra_info)), [])
        if self._kind == "ip":
            photo = Image.fromarray(render(self._concept.train[0]))
            known = self._runner.say(nothing, f"{NAME} is", [])
            if not for_drawing:
                return self._runner.show(known, photo)
            latents = self._runner.encode(photo, generator=generator(0, "reference"))
            return self._runner.condition(known, photo, latents)
        return nothing

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
