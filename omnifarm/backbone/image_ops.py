"""Between pictures and rows of numbers: resizing, patches, latent tokens, pictures again.

Pure functions over Pillow images and tensors; no weights. First stop of every image that enters the backbone and
last stop of every image that leaves it.

Shape letters: C channels, H and W sides in pixels (or latent cells), h and w the token grid, p patch side.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.config import BackboneConfig, ImageTransformConfig
from omnifarm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTransform:
    """The resize rule of one image path, and the way to normalised pixels."""

    config: ImageTransformConfig
    """Sizes of the rule."""

    def size(self, width_height: tuple[int, int], *, num_images: int = 1) -> tuple[int, int]:
        """Return the (width, height) an image of this size is resized to.

        The minimum side wins over the maximum in the first step and loses in the last; the area step multiplies
        both sides by the area ratio (no square root), so it ends below `max_pixels`. Both as the official code does.

        Args:
            width_height: Source size in pixels, each at least 1.
            num_images: Images sharing `max_pixels`, at least 1.
        """
        rule = self.config
        width, height = width_height
        if width < 1 or height < 1 or num_images < 1:
            raise ConfigError(f"an image needs sides of at least 1 pixel, found {width}x{height} (of {num_images})")
        ratio = min(rule.max_size / max(width, height), 1.0)
        ratio = max(ratio, rule.min_size / min(width, height))
        width, height = self._scaled(width, height, ratio)
        max_pixels = rule.max_pixels / num_images
        if width * height > max_pixels:
            width, height = self._scaled(width, height, max_pixels / (width * height))
        if max(width, height) > rule.max_size:
            width, height = self._scaled(width, height, rule.max_size / max(width, height))
        return width, height

    def resize(self, image: Image.Image, *, num_images: int = 1) -> Image.Image:
        """Return the image at its ruled size (bicubic on 8-bit values)."""
        return image.resize(self.size(image.size, num_images=num_images), Image.Resampling.BICUBIC)

    def pixels(self, image: Image.Image, *, num_images: int = 1) -> Tensor:
        """Resize and normalise: (3, H, W) float32 in [-1, 1]."""
        return to_tensor(self.resize(image, num_images=num_images))

    def _scaled(self, width: int, height: int, ratio: float) -> tuple[int, int]:
        # Two roundings, to whole pixels and then to the stride, both half-to-even.
        return self._divisible(round(width * ratio)), self._divisible(round(height * ratio))

    def _divisible(self, side: int) -> int:
        stride = self.config.stride
        return max(stride, round(side / stride) * stride)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as 8-bit RGB, transparency (alpha or palette) laid over white."""
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if not has_alpha:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, H, W) float32 in [-1, 1]."""
    values = torch.from_numpy(np.array(to_rgb(image), dtype=np.uint8))
    return (values.permute(2, 0, 1).to(torch.float32).div(255) - 0.5) / 0.5


def to_uint8(pixels: Tensor) -> Tensor:
    """Quantise decoded pixels.

    Args:
        pixels: (3, H, W) around [-1, 1]; values outside are clamped.

    Returns:
        (H, W, 3) uint8, truncated rather than rounded, as the official code does.
    """
    return ((pixels.detach() * 0.5 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).to(torch.uint8)


def to_image(pixels: Tensor) -> Image.Image:
    """Return decoded pixels (3, H, W) as a Pillow RGB image."""
    return Image.fromarray(to_uint8(pixels).cpu().numpy())


def patchify(image: Tensor, *, patch: int) -> Tensor:
    """Cut an image into rows.

    Args:
        image: (C, H, W); H and W are cropped to multiples of `patch` from the bottom and right.
        patch: Side p of a square.

    Returns:
        (h*w, p*p*C): squares row by row, inside a square the order is (y, x, channel).
    """
    C, H, W = image.shape
    h, w = H // patch, W // patch
    squares = image[:, : h * patch, : w * patch].reshape(C, h, patch, w, patch)
    return squares.permute(1, 3, 2, 4, 0).reshape(h * w, patch * patch * C)


def unpatchify(rows: Tensor, *, grid: tuple[int, int], patch: int) -> Tensor:
    """Put rows (h*w, p*p*C) of `patchify` back together: (C, h*p, w*p)."""
    h, w = grid
    if rows.shape[0] != h * w:
        raise ConfigError(f"a {h}x{w} grid needs {h * w} rows, found {rows.shape[0]}")
    C = rows.shape[1] // (patch * patch)
    squares = rows.reshape(h, w, patch, patch, C).permute(4, 0, 2, 1, 3)
    return squares.reshape(C, h * patch, w * patch)


def patchify_vit(pixels: Tensor, *, patch: int) -> tuple[Tensor, tuple[int, int]]:
    """Return ViT patches (h*w, p*p*3) and their grid (h, w) of normalised pixels (3, H, W)."""
    _, H, W = pixels.shape
    return patchify(pixels, patch=patch), (H // patch, W // patch)


def vit_patch_size(config: BackboneConfig) -> int:
    """Return the side of a ViT patch in pixels."""
    return cast(int, config.vit.patch_size)


def latent_grid(size: tuple[int, int], *, config: BackboneConfig) -> tuple[int, int]:
    """Return the token grid (h, w) of an image of `size` (H, W) pixels; sides are rounded down."""
    side = config.latent_downsample
    return size[0] // side, size[1] // side
