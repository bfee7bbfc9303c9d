"""Photographs with one thing on a textured background, and the background as it really is."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

Scene = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture(scope="session")
def scene() -> Scene:
    def make(
        seed: int = 0, *, radius: int = 20, centre: tuple[int, int] = (64, 60)
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (photograph, background, where the thing is): a red ball before grainy grey-green."""
        rng = np.random.default_rng(seed)
        grain = rng.normal(0, 14, (128, 128, 1)) + rng.normal(0, 3, (128, 128, 3))
        background = np.clip(np.array([96, 120, 92]) + grain, 0, 255).astype(np.uint8)
        y, x = np.mgrid[0:128, 0:128]
        ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        photo = background.copy()
        photo[ball] = np.clip(np.array([205, 40, 36]) + rng.normal(0, 5, (int(ball.sum()), 3)), 0, 255)
        return photo, background, ball

    return make


@pytest.fixture(scope="session")
def as_png() -> Callable[[np.ndarray], bytes]:
    import io

    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return encode
