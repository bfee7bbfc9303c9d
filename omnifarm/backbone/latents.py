"""The latent autoencoder: pixels to latents and back, in the official file's tensor names.

Knows files, the scaling of latents and their token layout, and nothing of the language model.

Shape letters: B images, H and W pixels, Z latent channels, h and w latent cells, p latent patch side.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omnifarm.backbone.autoencoder import Autoencoder
from omnifarm.backbone.config import AutoencoderConfig
from omnifarm.backbone.image_ops import patchify, unpatchify
from omnifarm.errors import WeightsError

WEIGHTS_FILE = "ae.safetensors"
"""Name of the autoencoder's weights in a backbone folder."""


class LatentCodec:
    """Encoder and decoder of one backbone.

    A new codec has random weights, ready to be trained through `module`; `load` replaces them.

    Args:
        config: Sizes, scale and shift.
        latent_patch_size: Side p of the latent square that becomes one token.
    """

    def __init__(self, config: AutoencoderConfig, *, latent_patch_size: int = 2) -> None:
        self.config = config
        self.latent_patch_size = latent_patch_size
        self.module = Autoencoder(config).eval()

    @classmethod
    def from_file(cls, path: Path, *, config: AutoencoderConfig, latent_patch_size: int = 2) -> Self:
        """Build a codec and load `path` (official names) into it, frozen."""
        codec = cls(config, latent_patch_size=latent_patch_size)
        codec.load(path)
        codec.module.requires_grad_(False)
        return codec

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        """Convert or move the weights in place; returns the codec."""
        self.module.to(dtype=dtype, device=device)
        return self

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent posterior, unscaled and unclamped.

        Args:
            pixels: (3, H, W) or (B, 3, H, W) in [-1, 1].

        Returns:
            Two tensors, (Z, h, w) or (B, Z, h, w).
        """
        batch, is_single = _batched(pixels.to(dtype=self.dtype, device=self.device))
        mean, logvar = self.module.encoder(batch).chunk(2, dim=1)
        return (mean[0], logvar[0]) if is_single else (mean, logvar)

    def encode(
        self, pixels: Tensor, *, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Return scaled latents: scale_factor * (posterior - shift_factor).

        Args:
            pixels: (3, H, W) or (B, 3, H, W) in [-1, 1].
            generator: Draws the posterior noise on the CPU; without it and without `noise` the mean is used
                (the official code always samples).
            noise: Standard normal numbers of the latent's shape, instead of a draw.

        Returns:
            (Z, h, w) or (B, Z, h, w).
        """
        mean, logvar = self.moments(pixels)
        if noise is None and generator is not None:
            noise = torch.randn(mean.shape, generator=generator)
        posterior = mean if noise is None else mean + torch.exp(0.5 * logvar) * noise.to(mean)
        return self.config.scale_factor * (posterior - self.config.shift_factor)

    def encode_padded(self, images: Sequence[Tensor], *, noise: Tensor | None = None) -> Tensor:
        """Encode images of several sizes as one batch, as the official training does.

        Images are padded with mid-grey (0) at the right and bottom. The padding is seen by the network, so a
        smaller image's latents differ from those of `encode` alone.

        Returns:
            (B, Z, max h, max w); the latents of an image lie in its top-left corner.
        """
        H = max(image.shape[-2] for image in images)
        W = max(image.shape[-1] for image in images)
        batch = torch.stack(
            [nn.functional.pad(image, (0, W - image.shape[-1], 0, H - image.shape[-2])) for image in images]
        )
        return self.encode(batch, noise=noise)

    def decode(self, latent: Tensor) -> Tensor:
        """Return pixels of scaled latents (Z, h, w) or (B, Z, h, w); around [-1, 1], not clamped."""
        batch, is_single = _batched(latent.to(dtype=self.dtype, device=self.device))
        pixels: Tensor = self.module.decoder(batch / self.config.scale_factor + self.config.shift_factor)
        return pixels[0] if is_single else pixels

    def to_tokens(self, latent: Tensor) -> Tensor:
        """Return (h//p * w//p, p*p*Z) latent tokens of scaled latents (Z, h, w)."""
        return patchify(latent, patch=self.latent_patch_size)

    def from_tokens(self, tokens: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Return scaled latents (Z, h*p, w*p) of the tokens of a grid (h, w)."""
        return unpatchify(tokens, grid=grid, patch=self.latent_patch_size)

    def save(self, path: Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the weights to `path` in official names, converted to `dtype` if given."""
        state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in self.module.state_dict().items()}
        save_file(state, str(path))

    def load(self, path: Path) -> None:
        """Replace the weights by those of a file in official names.

        Raises:
            WeightsError: The file cannot be read, or tensors are missing, unexpected or misshaped (all are named).
        """
        try:
            found = load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path}: expected safetensors weights of the autoencoder; {error}") from error
        self.load_state(found, source=str(path))

    def load_state(self, found: Mapping[str, Tensor], *, source: str) -> None:
        """Replace the weights by `found`; see `load`. `source` names them in errors."""
        expected = self.module.state_dict()
        problems = [f"missing {name} {tuple(expected[name].shape)}" for name in expected if name not in found]
        problems += [f"unexpected {name}" for name in found if name not in expected]
        problems += [
            f"{name} must be {tuple(expected[name].shape)}, found {tuple(found[name].shape)}"
            for name in expected
            if name in found and expected[name].shape != found[name].shape
        ]
        if problems:
            raise WeightsError(
                f"{source}: the autoencoder does not match its configuration: " + "; ".join(problems),
                problems=problems,
            )
        self.module.load_state_dict(found)


def _batched(images: Tensor) -> tuple[Tensor, bool]:
    return (images[None], True) if images.dim() == 3 else (images, False)
