"""What a backbone folder says about its model: sizes, constants, image transforms.

Two JSON files come with every checkpoint (`llm_config.json`, `vit_config.json`); the constants that the official
release keeps in code may come as a third (`extra_config.json`). Without it the released values hold.
Knows nothing of tensors or tokenizers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from transformers import Qwen2Config, SiglipVisionConfig

from omnifarm.errors import ConfigError

EXTRA_FILES = ("extra_config.json", "golden_extra_config.json")
"""Names under which a folder may carry the constants of `BackboneConfig`, first match wins."""

_EXTRA_KEYS = {
    "note",
    "autoencoder",
    "bagel",
    "vae_transform",
    "vit_transform",
    "transform_max_pixels",
    "defaults",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialIds:
    """Ids of the four special tokens that frame segments."""

    im_start: int
    """Start of a text segment."""
    im_end: int
    """End of a text segment."""
    vision_start: int
    """Start of an image."""
    vision_end: int
    """End of an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTransformConfig:
    """Resize rule of one image path (all sizes in pixels)."""

    max_size: int
    """Longest side after resizing."""
    min_size: int
    """Shortest side after resizing; wins over `max_size` in the first step of the rule."""
    stride: int
    """Both sides become multiples of this."""
    max_pixels: int = 14 * 14 * 9 * 1024
    """Largest area after resizing."""

    def __post_init__(self) -> None:
        for name in ("max_size", "min_size", "stride", "max_pixels"):
            _require_positive(f"image transform {name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig:
    """The latent autoencoder (FLUX layout). Defaults are the released values."""

    in_channels: int = 3
    """Image channels in."""
    out_channels: int = 3
    """Image channels out."""
    ch: int = 128
    """Channels of the first level."""
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Channel multiplier per level; each level but the last halves the side."""
    num_res_blocks: int = 2
    """Residual blocks per encoder level (the decoder has one more)."""
    z_channels: int = 16
    """Latent channels Z."""
    downsample: int = 8
    """Image side over latent side."""
    scale_factor: float = 0.3611
    """Latents are scale_factor * (posterior - shift_factor)."""
    shift_factor: float = 0.1159
    """See `scale_factor`."""

    def __post_init__(self) -> None:
        if not self.ch_mult or 2 ** (len(self.ch_mult) - 1) != self.downsample:
            raise ConfigError(
                f"autoencoder: {len(self.ch_mult)} levels halve the side {len(self.ch_mult) - 1} times, but downsample is "
                f"{self.downsample}; make ch_mult and downsample agree"
            )
        for name in ("in_channels", "out_channels", "ch", "num_res_blocks", "z_channels"):
            _require_positive(f"autoencoder {name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Everything needed to build the model of one checkpoint folder."""

    llm: Qwen2Config
    """Language model sizes."""
    vit: SiglipVisionConfig
    """Vision tower sizes; `num_hidden_layers` is already one less than in the file (penultimate layer)."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Latent autoencoder."""
    latent_patch_size: int = 2
    """Side p of the latent square that becomes one token."""
    max_latent_size: int = 64
    """Side of the latent position table, in tokens."""
    vit_max_patches_per_side: int = 70
    """Side of the ViT position tables, in patches."""
    connector_act: str = "gelu_pytorch_tanh"
    """Activation between the two connector layers (a transformers name)."""
    interpolate_pos: bool = False
    """Whether position ids are interpolated onto the table instead of counted from its corner."""
    timestep_shift: float = 1.0
    """Shift s of the training timesteps, t <- s*t / (1 + (s-1)*t)."""
    vae_transform: ImageTransformConfig = field(
        default_factory=lambda: ImageTransformConfig(max_size=1024, min_size=512, stride=16)
    )
    """Resize rule of the latent path."""
    vit_transform: ImageTransformConfig = field(
        default_factory=lambda: ImageTransformConfig(max_size=980, min_size=224, stride=14)
    )
    """Resize rule of the ViT path."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Suggestions that travel with the weights: `generation`, `editing` (sampling options), `recipe` (training)."""

    def __post_init__(self) -> None:
        llm: Any = self.llm
        vit: Any = self.vit
        for name in ("latent_patch_size", "max_latent_size", "vit_max_patches_per_side"):
            _require_positive(name, getattr(self, name))
        if self.timestep_shift <= 0:
            raise ConfigError(f"timestep_shift must be above 0, found {self.timestep_shift}")
        if llm.hidden_size % llm.num_attention_heads or (llm.hidden_size // llm.num_attention_heads) % 2:
            raise ConfigError(
                f"llm hidden_size {llm.hidden_size} must split into {llm.num_attention_heads} heads of even width"
            )
        if llm.num_attention_heads % llm.num_key_value_heads:
            raise ConfigError(
                f"llm num_attention_heads {llm.num_attention_heads} must be a multiple of "
                f"num_key_value_heads {llm.num_key_value_heads}"
            )
        if llm.hidden_size % 4:
            raise ConfigError(f"llm hidden_size {llm.hidden_size} must be a multiple of 4 (sin-cos position tables)")
        if vit.hidden_size % vit.num_attention_heads:
            raise ConfigError(
                f"vit hidden_size {vit.hidden_size} must split into {vit.num_attention_heads} heads evenly"
            )
        if vit.num_hidden_layers < 0:
            raise ConfigError("vit num_hidden_layers must be at least 1 in the file (one layer is dropped)")

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the configuration of a checkpoint folder.

        Args:
            folder: Holds `llm_config.json`, `vit_config.json` and, optionally, one of `EXTRA_FILES`.

        Returns:
            The configuration; without an extra file the constants of the official release.

        Raises:
            ConfigError: A file is missing, is no JSON object, or names a layer kind this code does not run.
        """
        folder = Path(folder)
        llm = _read_llm(_read_json(folder / "llm_config.json"))
        vit_values = _read_json(folder / "vit_config.json")
        # The tower stops at the penultimate layer of the original; the checkpoint holds no more than that.
        vit_values["num_hidden_layers"] = int(vit_values.get("num_hidden_layers", 12)) - 1
        vit = SiglipVisionConfig(**_without_model_type(vit_values))
        for name in EXTRA_FILES:
            if (folder / name).is_file():
                extra = _read_json(folder / name)
                if name == EXTRA_FILES[0] and (unknown := set(extra) - _EXTRA_KEYS):
                    raise ConfigError(f"{folder / name}: unknown keys {sorted(unknown)}; known: {sorted(_EXTRA_KEYS)}")
                return cls(llm=llm, vit=vit, **_read_extra(extra, source=str(folder / name)))
        return cls(llm=llm, vit=vit)

    @property
    def hidden_size(self) -> int:
        """Width D of the language model."""
        return int(self.llm.hidden_size)

    @property
    def head_dim(self) -> int:
        """Width d of one attention head of the language model."""
        return int(self.llm.hidden_size // self.llm.num_attention_heads)

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies."""
        return rope_theta(self.llm)

    @property
    def latent_dim(self) -> int:
        """Numbers in one latent token: p * p * Z."""
        return self.latent_patch_size**2 * self.autoencoder.z_channels

    @property
    def patch_dim(self) -> int:
        """Numbers in one ViT patch: P * P * channels."""
        vit: Any = self.vit
        return int(vit.patch_size**2 * vit.num_channels)

    @property
    def vit_position_rows(self) -> int:
        """Rows of the vision tower's own position table."""
        vit: Any = self.vit
        return int((vit.image_size // vit.patch_size) ** 2)

    @property
    def latent_downsample(self) -> int:
        """Image pixels per latent token side."""
        return self.autoencoder.downsample * self.latent_patch_size


def rope_theta(config: Qwen2Config) -> float:
    """Return the rotary base of a language model configuration."""
    parameters: Any = config.rope_parameters
    return float(parameters["rope_theta"])


def _read_llm(values: dict[str, Any]) -> Qwen2Config:
    values = _without_model_type(values)
    layer_module = values.pop("layer_module", "Qwen2MoTDecoderLayer")
    if layer_module != "Qwen2MoTDecoderLayer":
        raise ConfigError(
            f"llm_config.json: layer_module must be Qwen2MoTDecoderLayer, found {layer_module!r}; "
            "dense and MLP-only expert variants are not supported"
        )
    if values.get("rope_scaling"):
        raise ConfigError(f"llm_config.json: rope_scaling must be absent, found {values['rope_scaling']!r}")
    # The official start-up code forces these whatever the file says.
    values.update(tie_word_embeddings=False)
    values.pop("qk_norm", None)
    config = Qwen2Config(**values)
    if config.hidden_act != "silu":
        raise ConfigError(f"llm_config.json: hidden_act must be silu, found {config.hidden_act!r}")
    return config


def _read_extra(extra: dict[str, Any], *, source: str) -> dict[str, Any]:
    bagel: dict[str, Any] = dict(extra.get("bagel", {}))
    for flag in ("visual_gen", "visual_und"):
        if not bagel.pop(flag, True):
            raise ConfigError(f"{source}: {flag} must be true; a backbone without it cannot be personalised")
    rename = {"vit_max_num_patch_per_side": "vit_max_patches_per_side"}
    known = {*rename, "latent_patch_size", "max_latent_size", "connector_act", "interpolate_pos", "timestep_shift"}
    if unknown := set(bagel) - known:
        raise ConfigError(f"{source}: unknown keys in bagel {sorted(unknown)}; known: {sorted(known)}")
    found: dict[str, Any] = {rename.get(key, key): value for key, value in bagel.items()}
    if "autoencoder" in extra:
        values = {key: value for key, value in extra["autoencoder"].items() if key != "resolution"}
        if "out_ch" in values:
            values["out_channels"] = values.pop("out_ch")
        if "ch_mult" in values:
            values["ch_mult"] = tuple(values["ch_mult"])
        try:
            found["autoencoder"] = AutoencoderConfig(**values)
        except TypeError as error:
            raise ConfigError(f"{source}: autoencoder block: {error}") from error
    max_pixels = int(extra.get("transform_max_pixels", 14 * 14 * 9 * 1024))
    for name in ("vae_transform", "vit_transform"):
        if name in extra:
            block = extra[name]
            try:
                found[name] = ImageTransformConfig(
                    max_size=block["max_image_size"],
                    min_size=block["min_image_size"],
                    stride=block["image_stride"],
                    max_pixels=block.get("max_pixels", max_pixels),
                )
            except KeyError as error:
                raise ConfigError(f"{source}: {name} must hold {error.args[0]!r}, found {sorted(block)}") from error
    if "defaults" in extra:
        found["defaults"] = extra["defaults"]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; a backbone folder holds llm_config.json and vit_config.json") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} must be a JSON object, but does not parse: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a JSON object, found {type(values).__name__}")
    return values


def _without_model_type(values: dict[str, Any]) -> dict[str, Any]:
    # torch_dtype and architectures describe the file, not the model; transformers warns about some of them.
    dropped = {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version"}
    return {key: value for key, value in values.items() if key not in dropped}


def _require_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, found {value!r}")
