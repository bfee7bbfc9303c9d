"""Pictures made ready for the backbone once, and kept: ViT features and the posterior of their latents.

Both come from frozen networks and do not change during training, so the 2,000 steps of a concept run neither the
vision tower nor the autoencoder. Every picture first takes the latent path's resize rule, as in inference; what the
vision tower sees is that picture resized again.

Shapes: N latent tokens, E numbers per token (p*p*Z), n patches, V width of the vision tower.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.image_ops import ImageTransform, latent_grid, patchify_vit, to_tensor, vit_patch_size
from omnifarm.backbone.positions import grid_position_ids
from omnifarm.backbone.segments import LatentSegment, VitSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.spec import ConceptImage, ConceptSpec


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedImage:
    """One picture as the backbone takes it."""

    features: Tensor
    """(n, V) output of the vision tower, before the connector."""
    vit_grid: tuple[int, int]
    """(rows, columns) of patches."""
    mean: Tensor
    """(N, E) float32 mean of the scaled latent posterior, as tokens."""
    std: Tensor
    """(N, E) float32 standard deviation of it."""
    latent_grid: tuple[int, int]
    """(rows, columns) of latent tokens."""

    def vit(self, *, dropped: bool = False) -> VitSegment:
        """Return the picture for understanding."""
        return VitSegment(features=self.features, grid=self.vit_grid, dropped=dropped)

    def latents(self, posterior_noise: Tensor | None = None) -> Tensor:
        """Return clean latent tokens: the mean, or with noise a draw of the posterior (as the official code does)."""
        return self.mean if posterior_noise is None else self.mean + self.std * posterior_noise

    def clean(self, posterior_noise: Tensor | None = None, *, dropped: bool = False) -> LatentSegment:
        """Return the picture as a condition."""
        return LatentSegment(latents=self.latents(posterior_noise), grid=self.latent_grid, dropped=dropped)

    def target(self, *, timestep_logit: float, noise: Tensor, posterior_noise: Tensor | None = None) -> LatentSegment:
        """Return the picture as what is to be drawn."""
        return LatentSegment(
            latents=self.latents(posterior_noise),
            grid=self.latent_grid,
            timestep_logit=timestep_logit,
            noise=noise,
        )


@torch.no_grad()
def prepare(backbone: LoadedBackbone, image: Image.Image) -> PreparedImage:
    """Run the frozen vision tower and autoencoder on one picture.

    Args:
        backbone: Any loaded backbone.
        image: RGB, upright (see `images.read_image`).

    Returns:
        Tensors on the CPU; features in the backbone's dtype, latents float32.
    """
    config = backbone.config
    resized = ImageTransform(config=config.vae_transform).resize(image)
    pixels = ImageTransform(config=config.vit_transform).pixels(resized)
    patches, grid = patchify_vit(pixels, patch=vit_patch_size(config))
    position_ids = grid_position_ids(grid, side=config.vit_max_patches_per_side, interpolate=config.interpolate_pos)
    features = backbone.model.encode_vit(patches, position_ids=position_ids, seqlens=[patches.shape[0]])
    codec = backbone.autoencoder
    mean, logvar = codec.moments(to_tensor(resized))
    scale, shift = config.autoencoder.scale_factor, config.autoencoder.shift_factor
    return PreparedImage(
        features=features.cpu(),
        vit_grid=grid,
        mean=codec.to_tokens(scale * (mean - shift)).float().cpu(),
        std=codec.to_tokens(scale * torch.exp(0.5 * logvar)).float().cpu(),
        latent_grid=latent_grid((resized.height, resized.width), config=config),
    )


class PreparedImages:
    """Prepared pictures by digest, the least recently used given up first. Not safe for concurrent use.

    Concepts share it: a set's negatives are prepared once per worker.

    Args:
        backbone: Prepares them.
        capacity: Pictures kept; at 512x512 and the released sizes one takes about 10 MB.
    """

    def __init__(self, backbone: LoadedBackbone, *, capacity: int = 1024) -> None:
        self._backbone = backbone
        self._capacity = capacity
        self._kept: OrderedDict[str, PreparedImage] = OrderedDict()

    def get(self, spec: ConceptSpec, image: ConceptImage) -> PreparedImage:
        """Return one prepared picture of a concept, read from its source on first use.

        Raises:
            ConceptError: The picture is gone or was changed since the concept was read.
        """
        prepared = self._kept.get(image.digest)
        if prepared is None:
            prepared = prepare(self._backbone, spec.open_image(image))
            self._kept[image.digest] = prepared
        self._kept.move_to_end(image.digest)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return prepared

    def get_all(self, spec: ConceptSpec) -> int:
        """Prepare every picture of a concept now; return how many there are. Bad pictures fail before training."""
        return sum(1 for image in spec.all_images() if self.get(spec, image) is not None)
