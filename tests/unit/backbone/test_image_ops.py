import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from omnifarm.backbone.config import ImageTransformConfig
from omnifarm.backbone.image_ops import (
    ImageTransform,
    patchify,
    patchify_vit,
    to_image,
    to_rgb,
    to_tensor,
    to_uint8,
    unpatchify,
)
from omnifarm.errors import ConfigError

VAE = ImageTransform(config=ImageTransformConfig(max_size=1024, min_size=512, stride=16))
VIT = ImageTransform(config=ImageTransformConfig(max_size=980, min_size=224, stride=14))


@pytest.mark.parametrize(
    ("source", "expected"),
    [((1024, 1024), (1024, 1024)), ((640, 480), (688, 512)), ((50, 2000), (32, 1024)), ((7, 7), (512, 512))],
)
def test_resize_rule_gives_the_official_sizes(source: tuple[int, int], expected: tuple[int, int]) -> None:
    assert VAE.size(source) == expected


def test_the_minimum_side_wins_over_the_maximum_before_the_last_step() -> None:
    wide = ImageTransform(config=ImageTransformConfig(max_size=160, min_size=64, stride=16))
    # 320x64: the minimum keeps the ratio at 1 although the long side is twice the maximum; the last step halves both.
    assert wide.size((320, 64)) == (160, 32)
    # With the maximum first the short side would have been rounded at 64 * 0.5 once; 330 shows the double rounding.
    assert wide.size((330, 64)) == (160, 32)


def test_the_area_step_multiplies_both_sides_by_the_area_ratio() -> None:
    rule = ImageTransform(config=ImageTransformConfig(max_size=980, min_size=14, stride=14, max_pixels=980 * 490))
    assert rule.size((980, 980)) == (490, 490)
    assert rule.size((980, 490), num_images=2) == (490, 252)


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_resized_sides_are_multiples_of_the_stride_and_not_above_the_maximum(width: int, height: int) -> None:
    for transform in (VAE, VIT):
        size = transform.size((width, height))
        assert all(side % transform.config.stride == 0 and side > 0 for side in size)
        assert max(size) <= transform.config.max_size


@given(st.integers(64, 2000), st.integers(64, 2000))
def test_the_latent_rule_is_idempotent_for_ordinary_shapes(width: int, height: int) -> None:
    if max(width, height) <= 6 * min(width, height):
        once = VAE.size((width, height))
        assert VAE.size(once) == once


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ConfigError, match="0x5"):
        VAE.size((0, 5))


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)
    grey = Image.new("LA", (1, 1), (10, 255))
    assert to_rgb(grey).getpixel((0, 0)) == (10, 10, 10)


def test_palette_transparency_is_laid_over_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    rgb = to_rgb(image)
    assert rgb.getpixel((0, 0)) == (255, 255, 255)
    assert rgb.getpixel((1, 0)) == (200, 100, 50)


def test_plain_modes_become_rgb() -> None:
    assert to_rgb(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)
    image = Image.new("RGB", (1, 1))
    assert to_rgb(image) is image


def test_pixels_run_from_minus_one_to_one_and_come_back_by_truncation() -> None:
    image = Image.new("RGB", (1, 1), (0, 128, 255))
    pixels = to_tensor(image)
    torch.testing.assert_close(pixels.flatten(), torch.tensor([-1, 128 / 127.5 - 1, 1]))
    assert to_uint8(torch.tensor([-3.0, 2.0, 0.9999 * 2 - 1]).reshape(3, 1, 1)).flatten().tolist() == [0, 255, 254]
    assert to_image(torch.ones(3, 1, 1)).getpixel((0, 0)) == (255, 255, 255)


def test_patches_are_row_major_with_channel_last_inside_and_come_back() -> None:
    image = torch.arange(3 * 4 * 6).reshape(3, 4, 6).float()
    rows = patchify(image, patch=2)
    assert rows.shape == (6, 12)
    assert rows[1, :3].tolist() == image[:, 0, 2].tolist()
    assert rows[1, 3:6].tolist() == image[:, 0, 3].tolist()
    assert torch.equal(unpatchify(rows, grid=(2, 3), patch=2), image)
    patches, grid = patchify_vit(image, patch=2)
    assert grid == (2, 3)
    assert torch.equal(patches, rows)
    with pytest.raises(ConfigError, match="2x2"):
        unpatchify(rows, grid=(2, 2), patch=2)


def test_an_odd_latent_is_cropped_from_bottom_and_right() -> None:
    assert torch.equal(patchify(torch.ones(1, 5, 3), patch=2), torch.ones(2, 4))
