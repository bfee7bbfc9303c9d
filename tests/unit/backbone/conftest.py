"""A tiny random backbone and made-up segments."""

from collections.abc import Callable

import pytest
import torch
from transformers import Qwen2Config, SiglipVisionConfig

from omnifarm.backbone.config import AutoencoderConfig, BackboneConfig, SpecialIds
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.segments import LatentSegment, Segment, VitSegment

Image = Callable[..., Segment]


@pytest.fixture(scope="session")
def special_ids() -> SpecialIds:
    return SpecialIds(im_start=90, im_end=91, vision_start=92, vision_end=93)


@pytest.fixture(scope="session")
def tiny_config() -> BackboneConfig:
    return BackboneConfig(
        llm=Qwen2Config(
            vocab_size=96, hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, rope_theta=5000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
        ),
        vit=SiglipVisionConfig(
            hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3, patch_size=4, image_size=36
        ),
        autoencoder=AutoencoderConfig(ch=32, z_channels=3, num_res_blocks=1),
        max_latent_size=7,
        vit_max_patches_per_side=9,
        timestep_shift=1.7,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tiny_config: BackboneConfig, special_ids: SpecialIds) -> Backbone:
    """Frozen, float64: what is equal in exact arithmetic then agrees to about 1e-14."""
    model = Backbone(tiny_config).double()
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(center, 0.2, generator=draws)
    model.special_ids = special_ids
    return model.requires_grad_(False)


@pytest.fixture
def vit_image(tiny_config: BackboneConfig) -> Image:
    def build(rows: int, columns: int, *, seed: int = 0, **fields: object) -> VitSegment:
        draws = torch.Generator().manual_seed(seed)
        patches = torch.randn(rows * columns, tiny_config.patch_dim, generator=draws, dtype=torch.float64)
        return VitSegment(patches=patches, grid=(rows, columns), **fields)  # type: ignore[arg-type]

    return build


@pytest.fixture
def latent_image(tiny_config: BackboneConfig) -> Image:
    def build(
        rows: int, columns: int, *, seed: int = 0, timestep_logit: float | None = None, **fields: object
    ) -> LatentSegment:
        draws = torch.Generator().manual_seed(seed)
        clean, noise = torch.randn(2, rows * columns, tiny_config.latent_dim, generator=draws, dtype=torch.float64)
        return LatentSegment(
            latents=clean,
            grid=(rows, columns),
            timestep_logit=timestep_logit,
            noise=None if timestep_logit is None else noise,
            **fields,  # type: ignore[arg-type]
        )

    return build
