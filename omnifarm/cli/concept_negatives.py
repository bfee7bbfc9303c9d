"""What `omnifarm concept negatives` does: ranks a set's pictures with the backbone's own vision tower."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omnifarm.backbone.image_ops import ImageTransform, patchify_vit, vit_patch_size
from omnifarm.backbone.positions import grid_position_ids
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.concept.datasets.load import load_concepts, split_layout
from omnifarm.concept.hard_negatives import FILE, Embed, Mining, mine_hard_negatives, to_json
from omnifarm.concept.spec import ConceptImage, ConceptSpec
from omnifarm.errors import ConceptError, ConfigError


def backbone_embedding(backbone: LoadedBackbone) -> Embed:
    """Return an embedding: the mean over patches of what the vision tower says about a picture."""
    config = backbone.config
    known: dict[str, NDArray[np.float32]] = {}

    @torch.no_grad()
    def embed(spec: ConceptSpec, image: ConceptImage) -> NDArray[np.float32]:
        if image.digest not in known:
            pixels = ImageTransform(config=config.vit_transform).pixels(spec.open_image(image))
            patches, grid = patchify_vit(pixels, patch=vit_patch_size(config))
            positions = grid_position_ids(
                grid, side=config.vit_max_patches_per_side, interpolate=config.interpolate_pos
            )
            features = backbone.model.encode_vit(patches, position_ids=positions, seqlens=[patches.shape[0]])
            known[image.digest] = np.asarray(features.float().mean(dim=0).cpu().numpy(), dtype=np.float32)
        return known[image.digest]

    return embed


def mine(concepts: str, *, backbone: str, keep: int, out: Path | None) -> dict[str, Any]:
    """Rank, write `hard_negatives.json`, and return a summary by concept.

    Raises:
        ConceptError: Nothing can be read or ranked.
        ConfigError: There is no folder to write into.
    """
    place = split_layout(concepts)[1].removeprefix("file://")
    if out is None and "://" in place:
        raise ConfigError(
            f"--out must name a file when the concepts lie at {place}; copy it to {place}/{FILE} afterwards"
        )
    path = out or Path(place).expanduser() / FILE
    loaded = load_concepts(concepts)
    specs = [spec for _, spec in loaded if isinstance(spec, ConceptSpec)]
    if not specs:
        raise ConceptError(f"no concept at {concepts} can be read; see `omnifarm concept validate {concepts}`")
    embed = backbone_embedding(load_backbone(backbone))
    found: dict[str, Mining] = {spec.name: mine_hard_negatives(spec, specs, embed=embed, keep=keep) for spec in specs}
    path.write_text(
        json.dumps(to_json(found, embedding=f"{backbone}: vision tower, mean over patches"), indent=1) + "\n",
        encoding="utf-8",
    )
    return {
        "file": str(path),
        "concepts": {
            name: {
                "hard": [{"path": one.image.path, "similarity": round(one.similarity, 4)} for one in mining.hard],
                "suspects": [one.image.path for one in mining.suspects],
            }
            for name, mining in found.items()
        },
    }
