"""Small photographs and concept folders made on the spot."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.backbone.weights import LoadedBackbone, load_backbone

CHECKPOINT = Path(__file__).parents[2] / "golden" / "a" / "checkpoint"

Photo = Callable[..., bytes]
WriteConcept = Callable[..., Path]


def draw(seed: int, *, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
    """A picture of smooth random colours; every seed another."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photo() -> Photo:
    def make(
        seed: int = 0, *, kind: str = "PNG", size: tuple[int, int] = (40, 32), mode: str = "RGB", **options: object
    ) -> bytes:
        return encode(draw(seed, size=size, mode=mode), kind, **options)

    return make


@pytest.fixture
def write_concept(photo: Photo) -> WriteConcept:
    def write(folder: Path, *, yaml: str = "class: dog\n", first: int = 0, num_photos: int = 4) -> Path:
        (folder / "images").mkdir(parents=True)
        for index in range(num_photos):
            (folder / f"images/{index}.png").write_bytes(photo(first + index))
        (folder / "concept.yaml").write_text(yaml)
        return folder

    return write


@pytest.fixture(scope="session")
def tokenizer() -> BackboneTokenizer:
    return BackboneTokenizer.from_folder(CHECKPOINT)


@pytest.fixture(scope="session")
def backbone() -> LoadedBackbone:
    return load_backbone(CHECKPOINT)
