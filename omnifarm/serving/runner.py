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
from omnifarm.backbone.flow import Branches, SamplingOptions, sample
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
from omnifarm.backbone.model import Backbone
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
    """Velocities computed for it, guidance branches included."""


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
        together = _BranchesTogether(self._model, guidance, grid=grid, options=options)
        tokens = sample(together.branches(), noise=noise.to(self._device), options=options)
        return Latents(tokens=tokens, grid=grid, num_evaluations=together.num_evaluations)

    @torch.inference_mode()
    def decode(self, latents: Latents) -> Image.Image:
        """The picture of latents."""
        return to_image(self._codec.decode(self._codec.from_tokens(latents.tokens, grid=latents.grid)))


class _BranchesTogether:
    """The branches of one drawing, evaluated in one pass a step (1.6x faster than two passes, on one core).

    `sample` asks for the main branch first; what guidance needs besides is computed with it and handed out after.
    """

    def __init__(self, model: Backbone, guidance: Guidance, *, grid: tuple[int, int], options: SamplingOptions) -> None:
        self.num_evaluations = 0
        self._guidance = guidance
        self._options = options
        self._model = model
        self._grid = grid
        self._denoisers: dict[int, Denoiser] = {}
        self._velocities: list[Tensor] = []

    def branches(self) -> Branches:
        return Branches(
            main=self._main,
            without_text=lambda x, t: self._velocities[1],
            without_image=lambda x, t: self._velocities[2],
        )

    def _main(self, x: Tensor, t: float) -> Tensor:
        text_scale, img_scale = self._options.scales_at(t)
        count = 1 if text_scale <= 1 else 3 if img_scale > 1 else 2
        if count not in self._denoisers:
            contexts = [self._guidance.main, self._guidance.without_text, self._guidance.without_image][:count]
            self._denoisers[count] = Denoiser(self._model, contexts, grids=[self._grid] * count)
        self._velocities = self._denoisers[count]([x] * count, [t] * count)
        self.num_evaluations += count
        return self._velocities[0]
