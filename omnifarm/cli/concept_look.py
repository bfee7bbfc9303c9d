"""What `omnifarm concept look` writes: a photo, and the same photo lit where a concept's identifier looks.

Shape letters: H and W pixels of the photo.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from omnifarm.backbone.image_ops import to_rgb
from omnifarm.backbone.weights import load_backbone
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import ConfigError
from omnifarm.serving.looking import looking_at
from omnifarm.store.open import open_store

_DARKEST = 0.15
"""Brightness of a patch that is not looked at."""


def look(name: str, photo: Path, *, store: str, backbone: str, out: Path) -> dict[str, Any]:
    """Write a picture of where a learned concept looks, and return the map.

    Args:
        name: The concept's name.
        photo: A picture file.
        store: Where the concept was committed.
        backbone: The one it was learned on.
        out: File to write; its suffix says the format.

    Returns:
        JSON-compatible: `map`, rows of mean attention over layers and heads; `layers`, the same sum by layer; `file`.

    Raises:
        ConfigError: The photo cannot be read.
        OmniFarmError: The concept or the backbone cannot be used.
    """
    try:
        image = to_rgb(Image.open(photo))
        image.load()
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"expected a picture in {photo}, found {error}; name a PNG, JPEG or WebP file") from error
    loaded = load_backbone(backbone)
    _, concept = ConceptRepository(open_store(store)).load(name, fingerprint=loaded.fingerprint)
    weights = looking_at(loaded, image, concept=concept)
    mean = weights.mean(dim=0)
    lit = _lit(image, mean)
    both = Image.new("RGB", (2 * image.width, image.height))
    both.paste(image, (0, 0))
    both.paste(lit, (image.width, 0))
    both.save(out)
    return {
        "file": str(out),
        "layers": [round(value, 6) for value in weights.flatten(1).sum(dim=1).tolist()],
        "map": [[round(value, 6) for value in row] for row in mean.tolist()],
    }


def _lit(image: Image.Image, weights: torch.Tensor) -> Image.Image:
    """Return the photo, dark where `weights` (rows, columns) are small, untouched at their largest."""
    share = (weights / weights.max().clamp(min=1e-12))[None, None]
    bright_HW = F.interpolate(share, size=(image.height, image.width), mode="bilinear", align_corners=False)[0, 0]
    factors = _DARKEST + (1 - _DARKEST) * bright_HW.numpy()[..., None]
    return Image.fromarray((np.asarray(image, dtype=np.float32) * factors).round().astype(np.uint8))
