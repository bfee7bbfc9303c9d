"""What the frozen parts make of the rendered pictures, computed once and kept on disk in bf16."""

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.native import fast_dtype
from omnifarm.backbone.positions import grid_position_ids
from omnifarm.miniature.pretrain.codec import to_pixels, without_identities
from omnifarm.miniature.pretrain.sequences import VIT_GRID

PATCH = 12
_BATCH = 50


@torch.no_grad()
def vision_features(model: Backbone, pictures: NDArray[np.uint8]) -> Tensor:
    """Return (N, V, 64, width) bf16 outputs of the vision tower for pictures (N, V, 96, 96, 3)."""
    flat = pictures.reshape(-1, *pictures.shape[2:])
    ids = grid_position_ids(VIT_GRID, side=VIT_GRID[1], interpolate=False)
    parts = []
    for first in range(0, len(flat), _BATCH):
        pixels = to_pixels(torch.from_numpy(flat[first : first + _BATCH].copy()))
        count = len(pixels)
        out = model.encode_vit(
            patches_of(pixels, patch=PATCH).flatten(0, 1),
            position_ids=ids.repeat(count),
            seqlens=[len(ids)] * count,
        )
        parts.append(out.to(torch.bfloat16).reshape(count, len(ids), -1))
    features = torch.cat(parts)
    return features.reshape(*pictures.shape[:2], *features.shape[1:])


@torch.no_grad()
def latent_features(codec: LatentCodec, pictures: NDArray[np.uint8]) -> Tensor:
    """Return (N, V, 36, 64) bf16 latent tokens at unit scale of pictures (N, V, 96, 96, 3)."""
    flat = pictures.reshape(-1, *pictures.shape[2:])
    dtype = fast_dtype("cpu")
    trimmed = without_identities(copy.deepcopy(codec.module).to(dtype)).get_submodule("encoder")
    parts = []
    for first in range(0, len(flat), _BATCH):
        pixels = to_pixels(torch.from_numpy(flat[first : first + _BATCH].copy()))
        mean = trimmed(pixels.to(dtype)).float()[:, : codec.config.z_channels]
        latent = codec.config.scale_factor * (mean - codec.config.shift_factor)
        parts.append(patches_of(latent.float(), patch=codec.latent_patch_size).to(torch.bfloat16))
    features = torch.cat(parts)
    return features.reshape(*pictures.shape[:2], *features.shape[1:])


def patches_of(images: Tensor, *, patch: int) -> Tensor:
    """Return (B, h*w, patch*patch*C) rows of images (B, C, H, W), in the order of `image_ops.patchify`."""
    count, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    squares = images.reshape(count, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    return squares.reshape(count, rows * columns, patch * patch * channels)


def cached(path: Path, make: object) -> Tensor:
    """Return the tensor in `path`, made by calling `make` when there is none."""
    if not path.is_file():
        assert callable(make)
        partial = path.with_suffix(".partial")
        save_file({"features": make().contiguous()}, str(partial))
        partial.replace(path)
    return load_file(str(path))["features"]
