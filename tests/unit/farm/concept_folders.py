"""Concept folders made on the spot, small enough to be learned in a second."""

from pathlib import Path

import numpy as np
from PIL import Image

CHECKPOINT = Path(__file__).parents[2] / "golden" / "a" / "checkpoint"
"""A random backbone in the official layout."""

RECIPE = {
    "steps": 6,
    "batch_size": 3,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "num_und": 2,
    "num_gen": 2,
    "precision": "float32",
}
"""Short, and exact on every CPU."""


def write_concepts(root: Path, names: list[str], *, bad: str | None = None) -> Path:
    """Write one folder per name; the photographs of `bad` are text files."""
    for index, name in enumerate(names):
        folder = root / name / "images"
        folder.mkdir(parents=True)
        for photo in range(2):
            colours = np.random.default_rng(10 * index + photo).integers(0, 256, (2, 2, 3), dtype=np.uint8)
            picture = Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC)
            path = folder / f"{photo}.png"
            picture.save(path) if name != bad else path.write_text("no photograph")
        (folder.parent / "concept.yaml").write_text(
            f"class: dog\nextra_info:\n  - {name} lives by the sea.\n"
            f"qa:\n  - question: Where does <{name}> live?\n    answer: By the sea.\n"
        )
    return root
