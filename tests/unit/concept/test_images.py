import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from omnifarm.concept.images import ImageLimits, pixel_digest, read_image
from omnifarm.errors import ConceptError
from tests.unit.concept.conftest import Photo, draw, encode


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_read(photo: Photo, kind: str) -> None:
    image = read_image(photo(kind=kind), where="a")
    assert (image.mode, image.size, image.info) == ("RGB", (40, 32), {})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_out_upright_and_without_metadata(orientation: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = 255
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    stored = Image.fromarray(upright)
    stored = stored if turn is None else stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "secret camera"
    image = read_image(encode(stored, "JPEG", quality=95, exif=exif), where="a")
    assert image.size == (48, 32)
    assert np.abs(np.asarray(image).astype(int) - upright).mean() < 6
    assert len(image.getexif()) == 0
    assert image.info == {}


def test_alpha_is_laid_over_white() -> None:
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert read_image(encode(image), where="a").getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "I;16"])
def test_other_pixel_kinds_become_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((20, 20), 40_000, np.uint16))
    else:
        image = draw(1).convert("RGB").convert(mode)
    read = read_image(encode(image, "JPEG" if mode == "CMYK" else "PNG"), where="a")
    assert read.mode == "RGB"
    if mode == "I;16":
        assert read.getpixel((0, 0)) == (156, 156, 156)


def test_the_digest_depends_on_pixels_alone() -> None:
    image = draw(3)
    info = PngInfo()
    info.add_text("Comment", "somebody")
    first, second = encode(image), encode(image, compress_level=0, pnginfo=info)
    assert first != second
    assert pixel_digest(read_image(first, where="a")) == pixel_digest(read_image(second, where="b"))
    assert pixel_digest(read_image(encode(draw(4)), where="c")) != pixel_digest(image)


def test_the_digest_tells_shapes_apart() -> None:
    assert pixel_digest(Image.new("RGB", (20, 30))) != pixel_digest(Image.new("RGB", (30, 20)))


def test_a_digest_needs_rgb() -> None:
    with pytest.raises(ConceptError, match="mode L"):
        pixel_digest(Image.new("L", (4, 4)))


@pytest.mark.parametrize(
    ("data", "found", "fix"),
    [
        (b"", "an empty file", "export"),
        (b"GIF89a" + bytes(20), "a GIF", "export it as JPEG"),
        (bytes(4) + b"ftypheic" + bytes(20), "HEIC", "export it as JPEG"),
        (bytes(4) + b"ftypavif" + bytes(20), "an AVIF", "export it as JPEG"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer", "export"),
        (b"hello, world", "68 65 6c 6c", "export"),
    ],
)
def test_other_formats_are_named_and_refused(data: bytes, found: str, fix: str) -> None:
    with pytest.raises(ConceptError, match="expected a PNG, JPEG or WebP photograph") as caught:
        read_image(data, where="maeve/images/3.jpg")
    assert str(caught.value).startswith("maeve/images/3.jpg: ")
    assert found in caught.value.facts["what"]
    assert fix in caught.value.facts["fix"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_cut_off_file_is_refused_before_decoding(photo: Photo, kind: str) -> None:
    data = photo(kind=kind)
    with pytest.raises(ConceptError, match="cut off after"):
        read_image(data[: len(data) * 2 // 3], where="a")


def test_too_many_bytes_are_refused(photo: Photo) -> None:
    with pytest.raises(ConceptError, match=r"at most 100 are read; make it smaller"):
        read_image(photo(), where="a", limits=ImageLimits(max_bytes=100))


def test_too_many_pixels_are_refused_from_the_header() -> None:
    # A real bomb: 30000x30000 pixels announced, no pixel data behind them.
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    with pytest.raises(ConceptError, match="pixels"):
        read_image(bomb, where="a")
    with pytest.raises(ConceptError, match=r"40x32 = 1,280 pixels, at most 1,000 are read"):
        read_image(encode(draw(1)), where="a", limits=ImageLimits(max_pixels=1000))


def test_thumbnails_and_strips_are_refused() -> None:
    with pytest.raises(ConceptError, match="shorter side must have at least 16"):
        read_image(encode(draw(1, size=(60, 8))), where="a")
    with pytest.raises(ConceptError, match="at most 8 times the shorter"):
        read_image(encode(draw(1, size=(600, 20))), where="a")


def test_damaged_pixels_are_refused_with_the_reason(photo: Photo) -> None:
    data = bytearray(photo())
    start = data.index(b"IDAT") + 10
    data[start : start + 40] = bytes(40)
    with pytest.raises(ConceptError, match="cannot be decoded"):
        read_image(bytes(data), where="a")


def test_the_first_frame_of_an_animation_is_taken() -> None:
    buffer = io.BytesIO()
    draw(1).save(buffer, "WEBP", save_all=True, append_images=[draw(2)], lossless=True)
    assert pixel_digest(read_image(buffer.getvalue(), where="a")) == pixel_digest(draw(1))


_SEEDS = [encode(draw(5), kind) for kind in ("PNG", "JPEG", "WEBP")]


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from(_SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_no_damage_gets_past_as_another_error(data: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with contextlib.suppress(ConceptError):
        assert read_image(bytes(damaged), where="a", limits=ImageLimits(max_pixels=10_000)).mode == "RGB"


def test_a_colour_profile_is_applied_before_it_is_dropped() -> None:
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    buffer = io.BytesIO()
    lab_as_rgb = Image.new("RGB", (32, 32), (120, 60, 30))
    lab_as_rgb.save(buffer, format="PNG", icc_profile=wide.tobytes())
    # A profile for another kind of picture is dropped, and the pixels stay.
    assert read_image(buffer.getvalue(), where="a.png").getpixel((0, 0)) == (120, 60, 30)
    buffer = io.BytesIO()
    lab_as_rgb.save(buffer, format="PNG", icc_profile=gamma_one_profile())
    # Linear light 120/255 is encoded as about 183/255 in sRGB.
    red = read_image(buffer.getvalue(), where="a.png").getpixel((0, 0))
    assert red == pytest.approx((183, 133, 96), abs=3)
    assert "icc_profile" not in read_image(buffer.getvalue(), where="a.png").info


def test_a_damaged_colour_profile_is_dropped() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (120, 60, 30)).save(buffer, format="PNG", icc_profile=b"no profile")
    assert read_image(buffer.getvalue(), where="a.png").getpixel((0, 0)) == (120, 60, 30)


def gamma_one_profile() -> bytes:
    """sRGB's colours with a linear tone curve: sRGB's profile, its three curves replaced by the identity."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(struct.unpack_from(">I", data, 128)[0]):
        tag, offset, _ = struct.unpack_from(">4sII", data, 132 + 12 * index)
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            # A parametric curve of type 0 with exponent 1.
            struct.pack_into(">4sIHHi", data, offset, b"para", 0, 0, 0, 65536)
        # A profile that calls itself sRGB is taken at its word.
        if tag == b"desc":
            data[offset : offset + 64] = bytes(data[offset : offset + 64]).replace(
                b"\x00s\x00R\x00G\x00B", b"\x00l\x00i\x00n\x00e"
            )
    return bytes(data)
