"""The moves a request is made of: introduce concepts, show a picture, say something, write, denoise.

Every move takes a cached context and returns a new one; contexts share what they have in common, so a guidance
branch costs only what it does not share. System prompts are kept between requests: they depend on the concept
versions alone, which are part of their key. Decides nothing.

Shape letters: N latent tokens of one picture, E numbers per token.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone import inference
from omnifarm.backbone.flow import Branches, SamplingOptions, Velocity, sample
from omnifarm.backbone.image_ops import (
    ImageTransform,
    latent_grid,
    patchify_vit,
    to_image,
    to_rgb,
    to_tensor,
    vit_patch_size,
)
from omnifarm.backbone.inference import Denoiser
from omnifarm.backbone.kv_cache import Context
from omnifarm.backbone.segments import LatentSegment, VitSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.prompts import system_prompt, user_text
from omnifarm.serving.resident import Resident

_MAX_INTRODUCTIONS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """The three contexts of a drawing."""

    main: Context
    """Everything the request says."""
    without_text: Context
    """What text guidance steers away from."""
    without_image: Context
    """What image guidance steers away from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """A picture as the denoiser sees it."""

    tokens: Tensor
    """(N, E) latent tokens."""
    grid: tuple[int, int]
    """(rows, columns)."""
    num_evaluations: int = 0
    """Forward passes spent on it."""


class Runner:
    """Runs a loaded backbone, one move at a time. Not safe for several threads at once."""

    def __init__(self, loaded: LoadedBackbone) -> None:
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._codec = loaded.autoencoder
        self._config = loaded.config
        self._vae = ImageTransform(config=loaded.config.vae_transform)
        self._vit = ImageTransform(config=loaded.config.vit_transform)
        self._device = next(loaded.model.parameters()).device
        self._introductions: OrderedDict[tuple[tuple[str, str], ...], Context] = OrderedDict()

    def nothing(self) -> Context:
        """The context in which nothing has been said."""
        return inference.empty_context(self._model)

    @torch.inference_mode()
    def introduce(self, residents: Sequence[Resident]) -> Context:
        """The context in which these concepts are known, their system prompts in this order."""
        key = tuple((resident.name, resident.version) for resident in residents)
        known = self._introductions.get(key)
        if known is None:
            known = self.nothing()
            for resident in residents:
                known = inference.add_text(
                    self._model,
                    known,
                    system_prompt(resident.soft_tokens, tokenizer=self._tokenizer),
                    soft_table=resident.soft_tokens.table().to(self._device),
                )
            self._introductions[key] = known
            while len(self._introductions) > _MAX_INTRODUCTIONS:
                self._introductions.popitem(last=False)
        self._introductions.move_to_end(key)
        return known

    @torch.inference_mode()
    def say(self, context: Context, text: str, residents: Sequence[Resident]) -> Context:
        """Add a user's text; where it names one of `residents`, its learned vector stands."""
        rows, offset = {}, 0
        for resident in residents:
            rows[resident.identifier] = offset + resident.soft_tokens.layout.sks_row
            offset += resident.soft_tokens.layout.num_rows
        segment = user_text(text, tokenizer=self._tokenizer, rows=rows)
        table = torch.cat([resident.soft_tokens.table() for resident in residents]) if segment.soft else None
        if table is not None:
            table = table.to(self._device)
        return inference.add_text(self._model, context, segment, soft_table=table)

    def resize(self, image: Image.Image) -> Image.Image:
        """The picture at the size the backbone works with: every picture takes this step first."""
        return self._vae.resize(to_rgb(image))

    @torch.inference_mode()
    def show(self, context: Context, image: Image.Image) -> Context:
        """Add a picture for understanding."""
        patches, grid = patchify_vit(self._vit.pixels(image), patch=vit_patch_size(self._config))
        return inference.add_vit(self._model, context, VitSegment(patches=patches, grid=grid))

    @torch.inference_mode()
    def encode(self, image: Image.Image, *, generator: torch.Generator) -> Latents:
        """The picture as clean latents, drawn from the codec's posterior as the official code does."""
        latent = self._codec.encode(to_tensor(image), generator=generator)
        grid = latent_grid((image.height, image.width), config=self._config)
        return Latents(tokens=self._codec.to_tokens(latent.float()), grid=grid)

    @torch.inference_mode()
    def condition(self, context: Context, image: Image.Image, latents: Latents) -> Context:
        """Add a picture to be edited: its latents, then itself for understanding."""
        segment = LatentSegment(latents=latents.tokens, grid=latents.grid)
        return self.show(inference.add_latent(self._model, context, segment), image)

    @torch.inference_mode()
    def write(
        self, context: Context, *, max_tokens: int, temperature: float | None, generator: torch.Generator | None
    ) -> tuple[str, int]:
        """Let the model write; the context stays as it was.

        Returns:
            The text, and the number of tokens it took.
        """
        ids = inference.generate_text(
            self._model, context, max_tokens=max_tokens, temperature=temperature, generator=generator
        )
        return self._tokenizer.decode_generated(ids), len(ids)

    @torch.inference_mode()
    def denoise(
        self, guidance: Guidance, *, size: tuple[int, int], options: SamplingOptions, generator: torch.Generator
    ) -> Latents:
        """Draw a picture of `size` (height, width) as latents, from noise drawn on the CPU."""
        grid = latent_grid(size, config=self._config)
        noise = torch.randn(grid[0] * grid[1], self._config.latent_dim, generator=generator)
        num_evaluations = 0

        def under(context: Context) -> Velocity:
            denoiser = Denoiser(self._model, [context], grids=[grid])

            def velocity(x: Tensor, t: float) -> Tensor:
                nonlocal num_evaluations
                num_evaluations += 1
                return denoiser([x], [t])[0]

            return velocity

        branches = Branches(
            main=under(guidance.main),
            without_text=under(guidance.without_text),
            without_image=under(guidance.without_image),
        )
        tokens = sample(branches, noise=noise.to(self._device), options=options)
        return Latents(tokens=tokens, grid=grid, num_evaluations=num_evaluations)

    @torch.inference_mode()
    def decode(self, latents: Latents) -> Image.Image:
        """The picture of latents."""
        return to_image(self._codec.decode(self._codec.from_tokens(latents.tokens, grid=latents.grid)))
