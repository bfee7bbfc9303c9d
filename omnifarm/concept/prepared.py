"""Pictures made ready for the backbone once, and kept: ViT features and the posterior of their latents.

Both come from frozen networks and do not change during training, so the 2,000 steps of a concept run neither the
vision tower nor the autoencoder. Every picture first takes the latent path's resize rule, as in inference; what the
vision tower sees is that picture resized again.

Shapes: N latent tokens, E numbers per token (p*p*Z), n patches, V width of the vision tower.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from omnifarm.backbone.image_ops import ImageTransform, latent_grid, patchify_vit, to_tensor, vit_patch_size
from omnifarm.backbone.positions import grid_position_ids
from omnifarm.backbone.segments import LatentSegment, VitSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.spec import ConceptImage, ConceptSpec
from omnifarm.errors import ArtifactError, NotFoundError
from omnifarm.logs import event
from omnifarm.store.base import Store

_logger = logging.getLogger(__name__)

PREFIX = "prepared/"
"""Keys of all prepared pictures begin with this."""


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


def encode_prepared(prepared: PreparedImage) -> bytes:
    """Return a prepared picture as safetensors."""
    grids = torch.tensor([prepared.vit_grid, prepared.latent_grid], dtype=torch.int64)
    tensors = {"features": prepared.features, "mean": prepared.mean, "std": prepared.std, "grids": grids}
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def decode_prepared(data: bytes) -> PreparedImage:
    """Read a prepared picture.

    Raises:
        ArtifactError: The bytes are no prepared picture, or their tensors do not fit their grids.
    """
    try:
        tensors = load(data)
        (vit_grid, latent_grid) = (tuple(grid) for grid in tensors["grids"].tolist())
        features, mean, std = (tensors[name] for name in ("features", "mean", "std"))
        sizes = (math.prod(vit_grid), math.prod(latent_grid), math.prod(latent_grid))
        if [len(one) for one in (features, mean, std)] != list(sizes) or mean.shape != std.shape:
            raise ValueError(
                f"grids {vit_grid} and {latent_grid} do not fit {features.shape}, {mean.shape}, {std.shape}"
            )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"expected a prepared picture, found {len(data)} bytes that are none: {error}") from error
    return PreparedImage(features=features, vit_grid=vit_grid, mean=mean, std=std, latent_grid=latent_grid)


class PreparedImages:
    """Prepared pictures by digest, the least recently used given up first. Not safe for concurrent use.

    Concepts share it: a set's negatives are prepared once per worker.

    Args:
        backbone: Prepares them.
        capacity: Pictures kept; at 512x512 and the released sizes one takes about 10 MB.
        store: Keeps them beyond this process, under the backbone's fingerprint and the picture's digest; None does not.
    """

    def __init__(self, backbone: LoadedBackbone, *, capacity: int = 1024, store: Store | None = None) -> None:
        self._backbone = backbone
        self._capacity = capacity
        self._store = store
        self._kept: OrderedDict[str, PreparedImage] = OrderedDict()

    def get(self, spec: ConceptSpec, image: ConceptImage) -> PreparedImage:
        """Return one prepared picture of a concept, read from its source on first use.

        Raises:
            ConceptError: The picture is gone or was changed since the concept was read.
        """
        prepared = self._kept.get(image.digest)
        if prepared is None:
            prepared = self._stored(image.digest) or self._prepare(spec, image)
            self._kept[image.digest] = prepared
        self._kept.move_to_end(image.digest)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return prepared

    def _stored(self, digest: str) -> PreparedImage | None:
        """Return what an earlier process prepared; anything that does not fit this backbone is prepared anew."""
        if self._store is None:
            return None
        try:
            prepared = decode_prepared(self._store.get(self._key(digest)).data)
        except NotFoundError:
            return None
        except ArtifactError as error:
            event(_logger, "prepared_picture_refused", level=logging.WARNING, digest=digest, reason=str(error))
            return None
        config, dtype = self._backbone.config, self._backbone.model.dtype
        fits = prepared.features.shape[1] == config.vit.hidden_size and prepared.mean.shape[1] == config.latent_dim
        return prepared if fits and prepared.features.dtype == dtype else None

    def _prepare(self, spec: ConceptSpec, image: ConceptImage) -> PreparedImage:
        prepared = prepare(self._backbone, spec.open_image(image))
        if self._store is not None:
            self._store.put(self._key(image.digest), encode_prepared(prepared))
        return prepared

    def _key(self, digest: str) -> str:
        dtype = str(self._backbone.model.dtype).removeprefix("torch.")
        return f"{prepared_folder(self._backbone.fingerprint, dtype=dtype)}{digest}.safetensors"

    def get_all(self, spec: ConceptSpec, *, between: Callable[[], None] = lambda: None) -> int:
        """Prepare every picture of a concept now; return how many there are. Bad pictures fail before training.

        `between` is called before each picture; what it raises goes through.
        """
        count = 0
        for count, image in enumerate(spec.all_images(), 1):  # noqa: B007 - how many there were
            between()
            self.get(spec, image)
        return count


def prepared_folder(fingerprint: str, *, dtype: str) -> str:
    """Return where the pictures lie that a backbone prepared, each under its digest.

    Args:
        fingerprint: The backbone's.
        dtype: Of its weights, such as "float32"; features are rounded to it, so each type keeps its own.
    """
    return f"{PREFIX}{fingerprint[:32]}/{dtype}/"
