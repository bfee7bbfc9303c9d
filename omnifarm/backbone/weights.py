"""From a name to a backbone that is ready to use."""

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import torch

from omnifarm.backbone.checkpoint import fingerprint, load_model, read_header, weights_file
from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.latents import WEIGHTS_FILE as AUTOENCODER_FILE
from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.errors import WeightsError

MINIATURE = "miniature"
"""Name of the small backbone that ships with the package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedBackbone:
    """A frozen backbone with everything around it."""

    model: Backbone
    """Frozen weights in the type asked for."""
    tokenizer: BackboneTokenizer
    """Text to ids and back."""
    autoencoder: LatentCodec
    """Pixels to latents and back, float32 in every case."""
    config: BackboneConfig
    """Sizes and constants."""
    fingerprint: str
    """Identity of configuration and weights; soft tokens fit no other backbone."""

    @property
    def special_ids(self) -> SpecialIds:
        """Ids of the frame tokens."""
        return self.tokenizer.special_ids


class Loader(Protocol):
    """How a model's weights come into a process."""

    def model(self, folder: Path, *, config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> Backbone:
        """Return the frozen model of a folder."""
        ...

    def fingerprint(self, folder: Path, *, config: BackboneConfig) -> str:
        """Return the identity of configuration and weights."""
        ...


class WholeLoader:
    """Reads everything into this process."""

    def model(self, folder: Path, *, config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> Backbone:
        """Return the frozen model of a folder."""
        return load_model(folder, config=config, dtype=dtype, device=device)

    def fingerprint(self, folder: Path, *, config: BackboneConfig) -> str:
        """Digest every number."""
        return fingerprint(folder, config=config)


def load_backbone(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    loader: Loader | None = None,
) -> LoadedBackbone:
    """Load a backbone, frozen.

    Args:
        name_or_folder: "miniature", a folder in the official layout, or a Hugging Face id such as "org/name", which
            is downloaded once.
        dtype: Type of the model's weights; the autoencoder stays float32.
        device: Where weights go.
        loader: How weights come into this process; None reads them all.

    Returns:
        Model, tokenizer, autoencoder, configuration and fingerprint.

    Raises:
        WeightsError: There is no such backbone, or its files do not fit each other.
        ConfigError: Its configuration cannot be used.
    """
    folder = resolve_folder(name_or_folder)
    config = BackboneConfig.from_folder(folder)
    tokenizer = BackboneTokenizer.from_folder(folder)
    loader = loader or WholeLoader()
    model = loader.model(folder, config=config, dtype=dtype, device=torch.device(device))
    model.special_ids = tokenizer.special_ids
    autoencoder = LatentCodec.from_file(
        folder / AUTOENCODER_FILE, config=config.autoencoder, latent_patch_size=config.latent_patch_size
    )
    if torch.device(device) != autoencoder.device:
        autoencoder.to(device=device)
    return LoadedBackbone(
        model=model,
        tokenizer=tokenizer,
        autoencoder=autoencoder,
        config=config,
        fingerprint=loader.fingerprint(folder, config=config),
    )


def resolve_folder(name_or_folder: str | Path) -> Path:
    """Return the folder a name means, downloading it when it is a Hugging Face id.

    Raises:
        WeightsError: It is no folder, no known name and no id, or the download failed.
    """
    name = str(name_or_folder)
    if name == MINIATURE:
        return Path(str(files("omnifarm"))) / "miniature" / "weights"
    folder = Path(name_or_folder).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name):
        raise WeightsError(
            f"backbone must be {MINIATURE!r}, a folder or a Hugging Face id (org/name), found {name!r}", backbone=name
        )
    from huggingface_hub import snapshot_download

    try:  # the client raises its own, requests' and the operating system's errors
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:
        raise WeightsError(f"{name!r} is no folder, and downloading it failed: {error}", backbone=name) from error


def backbone_info(name_or_folder: str | Path) -> dict[str, Any]:
    """Describe a backbone without loading its weights.

    Args:
        name_or_folder: As in `load_backbone`.

    Returns:
        JSON-compatible: folder, sizes, tensor and number counts, bytes in bf16, special ids, fingerprint.

    Raises:
        WeightsError: As in `load_backbone`.
    """
    folder = resolve_folder(name_or_folder)
    config = BackboneConfig.from_folder(folder)
    tokenizer = BackboneTokenizer.from_folder(folder)
    ids = tokenizer.special_ids
    info: dict[str, Any] = {
        "folder": str(folder),
        "hidden_size": config.hidden_size,
        "layers": int(config.llm.num_hidden_layers),
        "heads": int(config.llm.num_attention_heads),
        "key_value_heads": int(config.llm.num_key_value_heads or config.llm.num_attention_heads),
        "vocabulary": int(config.llm.vocab_size),
        "tokenizer_length": len(tokenizer),
        "vit_hidden_size": int(config.vit.hidden_size),
        "vit_layers": int(config.vit.num_hidden_layers),
        "latent_channels": config.autoencoder.z_channels,
        "image_limits": {
            "latent": config.max_latent_size * config.latent_downsample,
            "vit": config.vit_max_patches_per_side * config.vit_transform.stride,
        },
        "special_ids": {
            "im_start": ids.im_start,
            "im_end": ids.im_end,
            "vision_start": ids.vision_start,
            "vision_end": ids.vision_end,
        },
        "defaults": dict(config.defaults),
        "fingerprint": fingerprint(folder, config=config),
    }
    for prefix, path in (("", weights_file(folder)), ("autoencoder_", folder / AUTOENCODER_FILE)):
        sizes = [torch.Size(entry["shape"]).numel() for entry in read_header(path)[0].values()]
        info |= {f"{prefix}tensors": len(sizes), f"{prefix}numbers": sum(sizes), f"{prefix}bytes_bf16": 2 * sum(sizes)}
    return info
