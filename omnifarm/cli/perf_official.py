"""Serving the official way, as the side to compare with: one request at a time, nothing kept between requests,
every segment and every guidance branch in a pass of its own (the official inferencer's order of calls)."""

from collections.abc import Sequence

import torch
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.inference import empty_context, generate_text, prefill
from omnifarm.backbone.interleave import Contexts, Interleaver
from omnifarm.backbone.kv_cache import Context
from omnifarm.backbone.segments import Segment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.prompts import system_prompt, user_text
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.seeding import generator


class OfficialWay:
    """Answers, draws and edits with one concept at a time; the same layouts and seeds as the engine.

    Args:
        loaded: The backbone.
    """

    def __init__(self, loaded: LoadedBackbone) -> None:
        self._loaded = loaded

    @torch.inference_mode()
    def ask(self, question: str, *, name: str, concept: SoftTokens, max_tokens: int) -> list[int]:
        """Return the ids of a greedy answer."""
        context = self._read([self._introduce(concept), self._say(question, name)], concept)
        return generate_text(self._loaded.model, context, max_tokens=max_tokens)

    @torch.inference_mode()
    def generate(
        self,
        prompt: str,
        *,
        name: str,
        concept: SoftTokens,
        size: tuple[int, int],
        options: SamplingOptions,
        seed: int,
    ) -> Image.Image:
        """Return a drawing of `size` (height, width)."""
        main = self._read([self._introduce(concept), self._say(prompt, name)], concept)
        nothing = empty_context(self._loaded.model)
        return self._draw(main, nothing, main, size=size, options=options, seed=seed)

    @torch.inference_mode()
    def edit(
        self,
        image: Image.Image,
        instruction: str,
        *,
        name: str,
        concept: SoftTokens,
        options: SamplingOptions,
        seed: int,
    ) -> Image.Image:
        """Return an edited picture."""
        interleaver = Interleaver(self._loaded, generator=generator(seed, "source"))
        source = interleaver.resize(image)
        shown: list[Segment] = [interleaver.latent(source), interleaver.vit(source)]
        introduction, said = self._introduce(concept), self._say(instruction, name)
        main = self._read([introduction, *shown, said], concept)
        without_text = self._read(shown, concept)
        without_image = self._read([introduction, said], concept)
        size = (source.height, source.width)
        return self._draw(main, without_text, without_image, size=size, options=options, seed=seed)

    def _draw(
        self,
        main: Context,
        without_text: Context,
        without_image: Context,
        *,
        size: tuple[int, int],
        options: SamplingOptions,
        seed: int,
    ) -> Image.Image:
        contexts = Contexts(main=main, without_text=without_text, without_image=without_image, size=size)
        interleaver = Interleaver(self._loaded)
        latents, grid = interleaver.sample(contexts, options=options, size=size, generator=generator(seed, "noise"))
        return interleaver.picture(latents, grid=grid)[0]

    def _read(self, segments: Sequence[Segment], concept: SoftTokens) -> Context:
        context = empty_context(self._loaded.model)
        for segment in segments:
            context = prefill(self._loaded.model, [context], [[segment]], soft_table=concept.table()).contexts[0]
        return context

    def _introduce(self, concept: SoftTokens) -> Segment:
        return system_prompt(concept, tokenizer=self._loaded.tokenizer)

    def _say(self, text: str, name: str) -> Segment:
        return user_text(text, tokenizer=self._loaded.tokenizer, rows={f"<{name}>": 0})
