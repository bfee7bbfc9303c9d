import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnifarm.backbone.checkpoint import fingerprint, load_model, weights_file
from omnifarm.backbone.config import AutoencoderConfig, BackboneConfig, ImageTransformConfig
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.weights import backbone_info, load_backbone, resolve_folder
from omnifarm.errors import ConfigError, WeightsError

GOLDEN = Path(__file__).parents[2] / "golden" / "a" / "checkpoint"
LLM = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "rope_theta": 7e3,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "qk_norm": False,
}
VIT = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 4,
    "image_size": 16,
}
EXTRA = {
    "bagel": {"latent_patch_size": 2, "max_latent_size": 3, "vit_max_num_patch_per_side": 4, "timestep_shift": 2.5},
    "autoencoder": {"z_channels": 5, "ch": 32, "ch_mult": [1, 2], "downsample": 2, "out_ch": 3, "num_res_blocks": 1},
    "vae_transform": {"max_image_size": 32, "min_image_size": 8, "image_stride": 4},
    "defaults": {"generation": {"num_timesteps": 9}},
}


def write(folder: Path, name: str, values: dict) -> None:
    (folder / name).write_text(json.dumps(values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "llm_config.json", LLM)
    write(tmp_path, "vit_config.json", VIT)
    write(tmp_path, "extra_config.json", EXTRA)
    model = Backbone(BackboneConfig.from_folder(tmp_path))
    model.initialise(generator=torch.Generator().manual_seed(0))
    save_file(model.state_dict(), tmp_path / "ema.safetensors")
    return tmp_path


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Backbone:
    return load_model(folder, config=BackboneConfig.from_folder(folder), dtype=dtype, device="cpu")


def identity(folder: Path) -> str:
    return fingerprint(folder, config=BackboneConfig.from_folder(folder))


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace (or with None remove) tensors of the weights file."""
    values = {**load_file(folder / "ema.safetensors"), **changes}
    save_file(
        {name: value for name, value in values.items() if value is not None},
        folder / "ema.safetensors",
    )


def test_the_folder_decides_every_size(folder: Path) -> None:
    config = BackboneConfig.from_folder(folder)
    assert (config.hidden_size, config.head_dim, config.latent_dim, config.patch_dim) == (16, 8, 20, 48)
    assert (config.rope_theta, config.llm.rms_norm_eps, config.timestep_shift) == (7e3, 1e-5, 2.5)
    assert config.vit.num_hidden_layers == 1
    assert not config.llm.tie_word_embeddings
    assert config.vae_transform == ImageTransformConfig(max_size=32, min_size=8, stride=4)
    assert config.latent_downsample == 4
    assert config.defaults["generation"] == {"num_timesteps": 9}


def test_without_an_extra_file_the_released_constants_hold(folder: Path) -> None:
    (folder / "extra_config.json").unlink()
    config = BackboneConfig.from_folder(folder)
    assert config.autoencoder == AutoencoderConfig()
    assert (config.max_latent_size, config.vit_max_patches_per_side, config.timestep_shift) == (64, 70, 1.0)
    assert config.vae_transform.max_pixels == 1_806_336


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("llm_config.json", LLM | {"layer_module": "Qwen2DecoderLayer"}, "layer_module must be Qwen2MoTDecoderLayer"),
        ("llm_config.json", LLM | {"num_attention_heads": 3}, "must split into 3 heads"),
        ("llm_config.json", LLM | {"hidden_act": "gelu"}, "hidden_act must be silu"),
        ("llm_config.json", LLM | {"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ("extra_config.json", EXTRA | {"bagle": {}}, "unknown keys"),
        ("extra_config.json", EXTRA | {"bagel": {"shift": 1}}, "unknown keys in bagel"),
        ("extra_config.json", EXTRA | {"bagel": {"visual_gen": False}}, "visual_gen must be true"),
        ("extra_config.json", EXTRA | {"vae_transform": {"max_image_size": 3}}, "min_image_size"),
        ("extra_config.json", EXTRA | {"autoencoder": {"ch_mult": [1, 2], "downsample": 8}}, "halve"),
    ],
)
def test_unusable_configurations_are_refused(folder: Path, file: str, values: dict, message: str) -> None:
    write(folder, file, values)
    with pytest.raises(ConfigError, match=message):
        BackboneConfig.from_folder(folder)


def test_weights_come_back_as_they_were_written_and_frozen(folder: Path) -> None:
    model, written = load(folder), load_file(folder / "ema.safetensors")
    assert sorted(model.state_dict()) == sorted(written)
    assert all(torch.equal(value, written[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_missing_position_tables_are_recomputed(folder: Path) -> None:
    before = load(folder)
    edit(folder, **{"vit_pos_embed.pos_embed": None, "latent_pos_embed.pos_embed": None})
    after = load(folder)
    assert torch.equal(after.vit_pos_embed.pos_embed, before.vit_pos_embed.pos_embed)
    assert torch.equal(after.latent_pos_embed.pos_embed, before.latent_pos_embed.pos_embed)


def test_every_wrong_tensor_is_named(folder: Path) -> None:
    changes = {
        "llm2vae.bias": None,
        "connector.fc1.weight": None,
        "language_model.model.layers.7.mlp.up_proj.weight": torch.zeros(1),
        "vae2llm.weight": torch.zeros(2, 3),
    }
    edit(folder, **changes)
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert len(caught.value.facts["problems"]) == 4
    for name in changes:
        assert name in str(caught.value)
    assert "must have shape (16, 20), found (2, 3)" in str(caught.value)


def test_training_weights_serve_when_there_are_no_averaged_ones(folder: Path) -> None:
    (folder / "ema.safetensors").rename(folder / "model.safetensors")
    assert weights_file(folder).name == "model.safetensors"
    load(folder)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_files_are_reported(folder: Path, damage: str) -> None:
    path = folder / "ema.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError):
        load(folder)


def test_the_fingerprint_follows_the_numbers_and_not_the_file(folder: Path) -> None:
    before = identity(folder)
    edit(folder)
    os.utime(folder / "ema.safetensors", ns=(1, 1))
    write(folder, "extra_config.json", EXTRA | {"defaults": {}, "note": "other words"})
    assert identity(folder) == before
    bias = load_file(folder / "ema.safetensors")["vae2llm.bias"]
    bias[3] += 1
    edit(folder, **{"vae2llm.bias": bias})
    assert identity(folder) != before


@pytest.mark.parametrize("change", [{"rope_theta": 8e3}, {"rms_norm_eps": 1e-6}])
def test_the_fingerprint_follows_constants(folder: Path, change: dict) -> None:
    before = identity(folder)
    write(folder, "llm_config.json", LLM | change)
    assert identity(folder) != before


def test_new_weights_begin_with_equal_experts_and_silent_velocity(folder: Path) -> None:
    values = dict(load(folder).named_parameters())
    copies = [name for name in values if "_moe_gen" in name]
    assert copies
    assert all(torch.equal(values[name], values[name.replace("_moe_gen", "")]) for name in copies)
    assert not values["llm2vae.weight"].any()


def test_a_whole_backbone_loads() -> None:
    loaded = load_backbone(GOLDEN, dtype=torch.bfloat16)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.special_ids == loaded.special_ids
    assert loaded.fingerprint == load_backbone(GOLDEN).fingerprint
    info = backbone_info(GOLDEN)
    assert info["fingerprint"] == loaded.fingerprint
    assert info["tensors"] == len(loaded.model.state_dict())
    assert info["bytes_bf16"] == 2 * info["numbers"]
    json.dumps(info)


def test_names_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="a folder or a Hugging Face id"):
        resolve_folder(tmp_path / "no" / "such" / "folder")
    assert resolve_folder("miniature").parts[-2:] == ("miniature", "weights")
