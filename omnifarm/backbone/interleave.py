"""Whole requests of texts and images in any order: answer with text, or draw (BAGEL specification 8).

Keeps the three contexts guidance needs - everything, without the last text, without images - and runs decoding,
thinking and sampling on them. Knows nothing of concepts; texts may carry soft slots, whose table is passed through.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.flow import Branches, SamplingOptions, Step, Velocity, sample
from omnifarm.backbone.image_ops import ImageTransform, latent_grid, patchify_vit, to_image, to_rgb, vit_patch_size
from omnifarm.backbone.inference import Denoiser, empty_context, generate_text, prefill
from omnifarm.backbone.kv_cache import Context
from omnifarm.backbone.segments import LatentSegment, Segment, TextSegment, VitSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.errors import ConfigError

Input = str | Image.Image | TextSegment
"""One part of a request."""

SYSTEM_PROMPTS = {
    "generation": (
        "You should first think about the planning process in the mind and then generate the image. \n"
        "The planning process is enclosed within <think> </think> tags, i.e. "
        "<think> planning process here </think> image here"
    ),
    "understanding": (
        "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
        "The reasoning process is enclosed within <think> </think> tags, i.e. "
        "<think> reasoning process here </think> answer here"
    ),
}
"""What think mode says first, by kind of output. The space before the line break belongs to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contexts:
    """What was read, three times."""

    main: Context
    """Everything."""
    without_text: Context
    """For text guidance: everything before the last text, or after the last image if nothing was said since."""
    without_image: Context
    """For image guidance: all texts, no images."""
    size: tuple[int, int] | None
    """(H, W) in pixels of the last image after its resize; None when there was none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A drawn image and how it came about."""

    image: Image.Image
    """8-bit RGB."""
    pixels: Tensor
    """(3, H, W) as decoded, not clamped."""
    latents: Tensor
    """(h*w, p*p*Z) latent tokens at time 0."""
    thought: str | None
    """What was thought first, in think mode."""
    contexts: Contexts
    """The contexts it was drawn from, thought included."""


class Interleaver:
    """Answers requests with one backbone, one request at a time. Holds no state between requests.

    Args:
        backbone: The loaded backbone.
        encode: Text to ids. By default special strings in texts are inert (`encode_user`); pass the tokenizer's
            `encode` for trusted texts that spell them.
        generator: Draws the posterior noise of condition images, as the official code does; None takes the mean.
    """

    def __init__(
        self,
        backbone: LoadedBackbone,
        *,
        encode: Callable[[str], list[int]] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.backbone = backbone
        self._encode = backbone.tokenizer.encode_user if encode is None else encode
        self._generator = generator
        self._latent_transform = ImageTransform(config=backbone.config.vae_transform)
        self._vit_transform = ImageTransform(config=backbone.config.vit_transform)

    @torch.no_grad()
    def read(
        self,
        inputs: Sequence[Input],
        *,
        output: Literal["image", "text"],
        think: bool = False,
        soft_table: Tensor | None = None,
    ) -> Contexts:
        """Read a request into the three contexts.

        Args:
            inputs: Texts and images in their order.
            output: What will be asked for; images get latents only when an image is to be drawn.
            think: Put the system prompt first, into the main and the image-free context.
            soft_table: (R, D) table of the soft slots in text segments.
        """
        empty = empty_context(self.backbone.model)
        main, without_text, without_image = empty, empty, empty
        size: tuple[int, int] | None = None
        if think:
            prompt = self.text(SYSTEM_PROMPTS["generation" if output == "image" else "understanding"])
            main = without_image = self._behind(empty, [prompt])
        for item in inputs:
            if isinstance(item, Image.Image):
                resized = self.resize(item)
                size = (resized.height, resized.width)
                # Both paths resize the resized image once more, each by its own rule.
                segments: list[Segment] = [self.latent(resized)] if output == "image" else []
                for segment in (*segments, self.vit(resized)):
                    main = self._behind(main, [segment])
                without_text = main
            else:
                segment = self.text(item) if isinstance(item, str) else item
                # Without images so far both contexts are one: read the text once.
                is_shared = without_image is main
                without_text, main = main, self._behind(main, [segment], soft_table=soft_table)
                without_image = main if is_shared else self._behind(without_image, [segment], soft_table=soft_table)
        return Contexts(main=main, without_text=without_text, without_image=without_image, size=size)

    def understand(
        self,
        inputs: Sequence[Input],
        *,
        think: bool = False,
        max_tokens: int = 512,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
        soft_table: Tensor | None = None,
    ) -> str:
        """Answer with text.

        Args:
            inputs: Texts and images; at least one.
            think: Ask for a thought before the answer.
            max_tokens: Tokens fed at most, the start token included.
            temperature: None for greedy decoding.
            generator: For draws at a temperature.
            soft_table: See `read`.

        Returns:
            The text, not stripped.
        """
        if not inputs:
            raise ConfigError("a request needs at least one text or image, found none")
        contexts = self.read(inputs, output="text", think=think, soft_table=soft_table)
        return self._decode(contexts.main, max_tokens=max_tokens, temperature=temperature, generator=generator)

    @torch.no_grad()
    def draw(
        self,
        inputs: Sequence[Input],
        *,
        options: SamplingOptions,
        size: tuple[int, int] = (1024, 1024),
        think: bool = False,
        max_think_tokens: int = 1000,
        temperature: float | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        on_step: Callable[[Step], None] | None = None,
        soft_table: Tensor | None = None,
    ) -> Drawing:
        """Draw an image.

        Args:
            inputs: Texts and images.
            options: Sampling.
            size: (H, W) in pixels when there is no image among the inputs; rounded down to whole latent tokens.
            think: Decode a thought first; it becomes part of the main context only.
            max_think_tokens: Tokens of the thought, its start token included.
            temperature: Of the thought; None for greedy decoding.
            generator: CPU generator of the initial noise (and of the thought's draws).
            noise: (h*w, p*p*Z) initial noise instead of a draw.
            on_step: See `flow.sample`.
            soft_table: See `read`.
        """
        contexts = self.read(inputs, output="image", think=think, soft_table=soft_table)
        thought = None
        if think:
            thought = self._decode(
                contexts.main, max_tokens=max_think_tokens, temperature=temperature, generator=generator
            )
            # The decoded words are encoded again: what is read may differ from the ids that were generated.
            contexts = Contexts(
                main=self._behind(contexts.main, [self.text(thought)]),
                without_text=contexts.without_text,
                without_image=contexts.without_image,
                size=contexts.size,
            )
        latents, grid = self.sample(
            contexts, options=options, size=contexts.size or size, generator=generator, noise=noise, on_step=on_step
        )
        image, pixels = self.picture(latents, grid=grid)
        return Drawing(image=image, pixels=pixels, latents=latents, thought=thought, contexts=contexts)

    @torch.no_grad()
    def sample(
        self,
        contexts: Contexts,
        *,
        options: SamplingOptions,
        size: tuple[int, int],
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> tuple[Tensor, tuple[int, int]]:
        """Sample latent tokens from contexts; returns them with their grid. Arguments as in `draw`."""
        config, model = self.backbone.config, self.backbone.model
        grid = latent_grid(size, config=config)
        limit = config.max_latent_size
        if min(grid) < 1 or max(grid) > limit:
            side = config.latent_downsample
            raise ConfigError(f"an image must measure {side} to {limit * side} pixels a side, found {size} (H, W)")
        if noise is None:
            noise = torch.randn(grid[0] * grid[1], config.latent_dim, generator=generator)
        branches = Branches(
            main=self.branch(contexts.main, grid=grid),
            without_text=self.branch(contexts.without_text, grid=grid),
            without_image=self.branch(contexts.without_image, grid=grid),
        )
        return sample(branches, noise=noise.to(model.device), options=options, on_step=on_step), grid

    def branch(self, context: Context, *, grid: tuple[int, int]) -> Velocity:
        """Return the velocity function of an image of `grid` behind a context."""
        denoiser = Denoiser(self.backbone.model, [context], grids=[grid])
        return lambda x, t: denoiser([x], [t])[0]

    @torch.no_grad()
    def picture(self, latents: Tensor, *, grid: tuple[int, int]) -> tuple[Image.Image, Tensor]:
        """Return the picture of latent tokens, and its pixels (3, H, W) as decoded."""
        codec = self.backbone.autoencoder
        pixels = codec.decode(codec.from_tokens(latents, grid=grid)).float()
        return to_image(pixels), pixels

    def resize(self, image: Image.Image) -> Image.Image:
        """Return an image at the size every image takes first."""
        return self._latent_transform.resize(to_rgb(image))

    def text(self, text: str) -> TextSegment:
        """Return the segment of a text."""
        return TextSegment(ids=tuple(self._encode(text)))

    def vit(self, image: Image.Image) -> VitSegment:
        """Return an image for understanding (ViT rule applied)."""
        patch = vit_patch_size(self.backbone.config)
        patches, grid = patchify_vit(self._vit_transform.pixels(image), patch=patch)
        return VitSegment(patches=patches, grid=grid)

    @torch.no_grad()
    def latent(self, image: Image.Image) -> LatentSegment:
        """Return an image as clean latents (latent rule applied, encoded alone)."""
        codec = self.backbone.autoencoder
        pixels = self._latent_transform.pixels(image)
        latent = codec.encode(pixels, generator=self._generator).float()
        grid = latent_grid((pixels.shape[1], pixels.shape[2]), config=self.backbone.config)
        return LatentSegment(latents=codec.to_tokens(latent).cpu(), grid=grid)

    def _behind(self, context: Context, segments: list[Segment], *, soft_table: Tensor | None = None) -> Context:
        return prefill(self.backbone.model, [context], [segments], soft_table=soft_table).contexts[0]

    def _decode(
        self, context: Context, *, max_tokens: int, temperature: float | None, generator: torch.Generator | None
    ) -> str:
        ids = generate_text(
            self.backbone.model, context, max_tokens=max_tokens, temperature=temperature, generator=generator
        )
        return self.backbone.tokenizer.decode_generated(ids)
