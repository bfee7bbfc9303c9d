"""The miniature's sizes, and its folder in the official layout.

Vision patches of 12 pixels give 64 tokens a picture, latent tokens of 16 pixels give 36; six layers of width 192 with
two experts. Everything else is the released architecture.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.model import Backbone
from omnifarm.miniature.tokenizer_build import VOCAB_SIZE, build_tokenizer

WIDTH = 192
LLM: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 4096,
    "model_type": "qwen2",
    "num_attention_heads": 3,
    "num_hidden_layers": 6,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCAB_SIZE,
}
VIT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "image_size": 96,
    "intermediate_size": 512,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 3,
    "num_channels": 3,
    "num_hidden_layers": 6,
    "patch_size": 12,
}
BAGEL: dict[str, Any] = {
    "visual_gen": True,
    "visual_und": True,
    "latent_patch_size": 2,
    "max_latent_size": 8,
    "vit_max_num_patch_per_side": 8,
    "connector_act": "gelu_pytorch_tanh",
    "interpolate_pos": False,
    "timestep_shift": 3.0,
}
DEFAULTS: dict[str, Any] = {
    "templates": "plain",
    "generation": {
        "num_timesteps": 25,
        "timestep_shift": 3.0,
        "cfg_text_scale": 2.0,
        "cfg_img_scale": 1.0,
        "cfg_interval": [0.0, 1.0],
        "cfg_renorm_type": "global",
        "cfg_renorm_min": 0.0,
        "size": [96, 96],
    },
    "editing": {
        "num_timesteps": 25,
        "timestep_shift": 3.0,
        "cfg_text_scale": 2.5,
        "cfg_img_scale": 1.0,
        "cfg_interval": [0.0, 0.7],
        "cfg_renorm_type": "text_channel",
        "cfg_renorm_min": 1.0,
        "keep_unchanged": True,
        "attempts": 3,
    },
    "replay": {"instruction": "", "num_exemplars": 0, "max_tokens": 64, "max_words": 40},
    "recipe": {
        "steps": 260,
        "batch_size": 11,
        "learning_rate": 5e-3,
        "beta2": 0.99,
        "warmup_steps": 20,
        "decay_from": 0.6,
        "init": "zero",
        "share_understanding": 8 / 11,
        "share_generation": 2 / 11,
        "share_editing": 1 / 11,
        "noise_draws": 3,
        "is_self_described": True,
    },
}
"""What serving and training use when nothing else is asked; measured, not guessed, where the model card says so."""


def write_configs(folder: Path, *, codec: LatentCodec | None, defaults: dict[str, Any] | None = None) -> None:
    """Write the three JSON files and the tokenizer.

    Args:
        folder: Made when absent.
        codec: Gives the autoencoder's constants; without one they are those of an untrained codec.
        defaults: Instead of `DEFAULTS`.
    """
    from omnifarm.miniature.pretrain.codec import AUTOENCODER

    folder.mkdir(parents=True, exist_ok=True)
    sizes = AUTOENCODER if codec is None else codec.config
    extra = {
        "note": "constants of the miniature that the official layout keeps in code",
        "autoencoder": {
            "resolution": 96,
            "in_channels": sizes.in_channels,
            "downsample": sizes.downsample,
            "ch": sizes.ch,
            "out_ch": sizes.out_channels,
            "ch_mult": list(sizes.ch_mult),
            "num_res_blocks": sizes.num_res_blocks,
            "z_channels": sizes.z_channels,
            "scale_factor": sizes.scale_factor,
            "shift_factor": sizes.shift_factor,
        },
        "bagel": BAGEL,
        "vae_transform": {"max_image_size": 96, "min_image_size": 48, "image_stride": 16},
        "vit_transform": {"max_image_size": 96, "min_image_size": 48, "image_stride": 12},
        "transform_max_pixels": 96 * 96,
        "defaults": DEFAULTS if defaults is None else defaults,
    }
    for name, content in (("llm_config", LLM), ("vit_config", VIT), ("extra_config", extra)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if not (folder / "tokenizer.json").is_file():
        build_tokenizer(folder)


def new_backbone(folder: Path, *, seed: int = 0) -> Backbone:
    """Build the untrained model of a configured folder, float32.

    The last matrix of every residual branch starts at zero, so that the untrained model is its input.
    """
    model = Backbone(BackboneConfig.from_folder(folder))
    generator = torch.Generator().manual_seed(seed)
    model.initialise(std=0.05, generator=generator)
    with torch.no_grad():
        model.language_model.model.embed_tokens.weight.normal_(0, 0.1, generator=generator)
        model.language_model.lm_head.weight.normal_(0, 0.02, generator=generator)
        for name, parameter in model.named_parameters():
            if name.startswith("language_model") and ("o_proj" in name or "down_proj" in name):
                parameter.zero_()
    return model


def export(folder: Path, *, model: Backbone, codec: LatentCodec, defaults: dict[str, Any] | None = None) -> None:
    """Write a complete backbone folder in bf16, each file whole or not at all.

    Args:
        folder: Receives or replaces configuration, tokenizer and weights.
        model: With float32 or bf16 weights.
        codec: Its autoencoder.
        defaults: Instead of `DEFAULTS`.
    """
    write_configs(folder, codec=codec, defaults=defaults)
    state = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    partial = folder / "ema.partial"
    save_file(state, str(partial))
    partial.replace(folder / "ema.safetensors")
    partial = folder / "ae.partial"
    codec.save(partial, dtype=torch.bfloat16)
    partial.replace(folder / "ae.safetensors")
