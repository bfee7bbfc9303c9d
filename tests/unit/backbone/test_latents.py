from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnifarm.backbone.autoencoder import Autoencoder
from omnifarm.backbone.config import AutoencoderConfig
from omnifarm.backbone.latents import LatentCodec
from omnifarm.errors import WeightsError

CONFIG = AutoencoderConfig(
    ch=32, ch_mult=(1, 2, 1), num_res_blocks=1, z_channels=4, downsample=4, scale_factor=0.7, shift_factor=-0.2
)


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    torch.manual_seed(0)
    codec = LatentCodec(CONFIG)
    codec.module.requires_grad_(False)
    return codec


def test_latents_are_scaled_means_or_samples(codec: LatentCodec) -> None:
    pixels = torch.rand(3, 16, 24) * 2 - 1
    mean, logvar = codec.moments(pixels)
    assert mean.shape == (4, 4, 6)
    torch.testing.assert_close(codec.encode(pixels), 0.7 * (mean + 0.2))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    expected = 0.7 * (mean + torch.exp(logvar / 2) * noise + 0.2)
    torch.testing.assert_close(codec.encode(pixels, generator=torch.Generator().manual_seed(3)), expected)


def test_one_image_and_a_batch_of_it_agree(codec: LatentCodec) -> None:
    pixels = torch.rand(3, 16, 16) * 2 - 1
    latent = codec.encode(pixels)
    torch.testing.assert_close(codec.encode(pixels[None])[0], latent, atol=1e-5, rtol=1e-4)
    assert codec.decode(latent).shape == (3, 16, 16)
    assert codec.decode(latent[None]).shape == (1, 3, 16, 16)


def test_tokens_come_back_as_the_latent(codec: LatentCodec) -> None:
    latent = torch.randn(4, 4, 6)
    tokens = codec.to_tokens(latent)
    assert tokens.shape == (6, 16)
    assert torch.equal(codec.from_tokens(tokens, grid=(2, 3)), latent)


def test_padding_images_to_one_batch_pads_with_grey_at_right_and_bottom(codec: LatentCodec) -> None:
    small, large = torch.rand(3, 8, 8), torch.rand(3, 16, 12)
    latents = codec.encode_padded([small, large])
    assert latents.shape == (2, 4, 4, 3)
    padded = torch.zeros(3, 16, 12)
    padded[:, :8, :8] = small
    torch.testing.assert_close(latents[0], codec.encode(padded), atol=1e-5, rtol=1e-4)


def test_saved_weights_have_official_names_and_load_back(codec: LatentCodec, tmp_path: Path) -> None:
    codec.save(tmp_path / "ae.safetensors")
    state = load_file(tmp_path / "ae.safetensors")
    for name in (
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.mid.block_2.norm1.bias",
        "decoder.mid.attn_1.proj_out.weight",
        "decoder.up.2.upsample.conv.weight",
        "decoder.up.0.block.1.conv2.bias",
        "decoder.norm_out.weight",
    ):
        assert name in state
    assert state["encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    again = LatentCodec.from_file(tmp_path / "ae.safetensors", config=CONFIG)
    pixels = torch.rand(3, 8, 8)
    assert torch.equal(again.encode(pixels), codec.encode(pixels))
    assert not any(parameter.requires_grad for parameter in again.module.parameters())


def test_every_wrong_tensor_of_a_file_is_named(codec: LatentCodec, tmp_path: Path) -> None:
    state = dict(codec.module.state_dict())
    del state["encoder.conv_in.bias"]
    state["surprise"] = torch.zeros(1)
    state["decoder.conv_out.bias"] = torch.zeros(7)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "ae.safetensors")
    with pytest.raises(WeightsError) as caught:
        LatentCodec.from_file(tmp_path / "ae.safetensors", config=CONFIG)
    for part in (
        "missing encoder.conv_in.bias",
        "unexpected surprise",
        "decoder.conv_out.bias must be (3,), found (7,)",
    ):
        assert part in str(caught.value)


def test_an_unreadable_file_is_a_weights_error(tmp_path: Path) -> None:
    (tmp_path / "ae.safetensors").write_bytes(b"\x01\x02")
    with pytest.raises(WeightsError, match=r"ae\.safetensors"):
        LatentCodec.from_file(tmp_path / "ae.safetensors", config=CONFIG)


def test_the_released_autoencoder_has_as_many_tensors_and_numbers_as_its_file() -> None:
    with torch.device("meta"):
        state = Autoencoder(AutoencoderConfig()).state_dict()
    assert len(state) == 244
    assert sum(tensor.numel() for tensor in state.values()) == 83_819_683
    assert "decoder.up.0.upsample.conv.weight" not in state, "the highest resolution is not doubled"
    assert "encoder.down.3.downsample.conv.weight" not in state
