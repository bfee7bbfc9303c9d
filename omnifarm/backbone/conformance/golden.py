"""A golden folder, opened: its index, its pictures and the backbone it was recorded from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.image_ops import ImageTransform, patchify_vit, to_rgb, vit_patch_size
from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.segments import LatentSegment, TextSegment, VitSegment
from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.errors import WeightsError


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """What the replays work with."""

    folder: Path
    """The golden folder."""
    index: Mapping[str, Any]
    """Its `index.json`."""
    backbone: LoadedBackbone
    """Its `checkpoint`, in float32 on the CPU."""

    @property
    def config(self) -> BackboneConfig:
        """The checkpoint's configuration."""
        return self.backbone.config

    @property
    def model(self) -> Backbone:
        """The checkpoint's model."""
        return self.backbone.model

    @property
    def codec(self) -> LatentCodec:
        """The checkpoint's autoencoder."""
        return self.backbone.autoencoder

    @property
    def tokenizer(self) -> BackboneTokenizer:
        """The checkpoint's tokenizer."""
        return self.backbone.tokenizer

    @property
    def latent_transform(self) -> ImageTransform:
        """The resize rule of the latent path."""
        return ImageTransform(config=self.config.vae_transform)

    @property
    def vit_transform(self) -> ImageTransform:
        """The resize rule of the ViT path."""
        return ImageTransform(config=self.config.vit_transform)

    def prompt(self, name: str) -> str:
        """Return a prompt of the index's configuration."""
        return str(self.index["config"]["prompts"][name])

    def image(self, name: str) -> Image.Image:
        """Return a picture: `img0`, or a path in the folder (anything after a space is ignored)."""
        path = name.split(" ")[0]
        path = path if "/" in path else f"images/{path}.png"
        try:
            with Image.open(self.folder / path) as image:
                image.load()
                return to_rgb(image)
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error}") from error

    def text(self, text: str, *, has_loss: bool = False) -> TextSegment:
        """Return a text segment, special strings parsed as the official code does."""
        return TextSegment(ids=tuple(self.tokenizer.encode(text)), has_loss=has_loss)

    def vit(self, name: str) -> VitSegment:
        """Return a picture as the vision tower sees it in training: one resize, straight from the raw picture."""
        patches, grid = patchify_vit(self.vit_transform.pixels(self.image(name)), patch=vit_patch_size(self.config))
        return VitSegment(patches=patches, grid=grid)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Return the latent token grid of normalised pixels."""
        side = self.config.latent_downsample
        return pixels.shape[-2] // side, pixels.shape[-1] // side

    def clean(self, name: str) -> LatentSegment:
        """Return a picture as clean latents, encoded alone (posterior mean)."""
        pixels = self.latent_transform.pixels(self.image(name))
        return LatentSegment(latents=self.codec.to_tokens(self.codec.encode(pixels)), grid=self.grid(pixels))


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a golden folder.

    Raises:
        WeightsError: It is missing, does not parse, or names no groups.
    """
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / 'index.json'} must be the JSON index of a golden set: {error}") from error
    if not isinstance(index, dict) or not isinstance(index.get("groups"), dict) or not index["groups"]:
        raise WeightsError(f"{folder / 'index.json'} must hold a non-empty object `groups`")
    return index
