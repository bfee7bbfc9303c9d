"""Picture intake: whatever bytes come, a clean picture or a clean refusal."""

import base64
import contextlib
import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from omnifarm.errors import RequestError
from serve.errors import TooLargeError, UnsupportedMediaError, status_of
from serve.pictures import STORED_SIDE, decode_mask, decode_picture, encode_picture, from_base64, kept_picture
from serve.settings import ServeSettings

SETTINGS = ServeSettings(store="unused", max_image_bytes=100_000, max_pixels=10_000)


def encoded(kind: str, size: tuple[int, int] = (40, 32)) -> bytes:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


GOOD = {kind: encoded(kind) for kind in ("PNG", "JPEG", "WEBP")}


@given(
    kind=st.sampled_from(sorted(GOOD)),
    cuts=st.tuples(st.integers(0, 400), st.integers(0, 400)),
    noise=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=12),
    tail=st.binary(max_size=64),
)
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_a_picture_or_a_clean_refusal(
    kind: str, cuts: tuple[int, int], noise: list[tuple[int, int]], tail: bytes
) -> None:
    data = bytearray(GOOD[kind])
    for place, value in noise:
        data[place % len(data)] = value
    start, length = cuts
    del data[start % len(data) :][:length]
    check(bytes(data[: len(data) - (length % 7)]) + tail)


@given(data=st.binary(max_size=400))
@example(data=b"\x89PNG\r\n\x1a\n")
@example(data=b"\xff\xd8\xff\xff\xd9")
@example(data=b"RIFF\xff\xff\xff\xffWEBPVP8X")
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_picture_or_a_clean_refusal(data: bytes) -> None:
    check(data)


def check(data: bytes) -> None:
    refusal: RequestError | None = None
    try:
        image = decode_picture(data, settings=SETTINGS)
    except RequestError as error:
        refusal = error
    if refusal is not None:
        assert status_of(refusal) in (413, 415, 422)
        assert refusal.facts["field"] == "image"
    else:
        assert (image.mode, image.info) == ("RGB", {})
        assert image.width * image.height <= SETTINGS.max_pixels


@given(text=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_is_base64_or_a_clean_refusal(text: str) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(from_base64(text), bytes)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_base64_may_stand_in_a_data_url(prefix: str) -> None:
    assert from_base64(prefix + base64.b64encode(b"abc").decode()) == b"abc"


def test_the_reason_of_a_refusal_is_its_kind() -> None:
    with pytest.raises(TooLargeError):
        decode_picture(encoded("PNG", (200, 200)), settings=SETTINGS)
    with pytest.raises(TooLargeError):
        decode_picture(GOOD["PNG"] + b"\0" * 100_000, settings=SETTINGS)
    with pytest.raises(UnsupportedMediaError):
        decode_picture(encoded("GIF"), settings=SETTINGS)


def test_a_mask_lets_change_what_is_fully_transparent() -> None:
    mask = Image.new("RGBA", (40, 32), (0, 0, 0, 255))
    ImageDraw.Draw(mask).rectangle((0, 0, 19, 31), fill=(0, 0, 0, 0))
    ImageDraw.Draw(mask).rectangle((20, 0, 21, 31), fill=(0, 0, 0, 1))
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    changes = decode_mask(buffer.getvalue(), settings=SETTINGS, size=(40, 32))
    assert [changes.getpixel((x, 5)) for x in (0, 19, 20, 39)] == [255, 255, 0, 0]


def test_what_is_written_holds_no_metadata() -> None:
    source = io.BytesIO()
    Image.new("RGB", (32, 32)).save(source, format="JPEG", comment=b"at home")
    image = decode_picture(source.getvalue(), settings=SETTINGS)
    for kind in ("png", "jpeg", "webp"):
        data = encode_picture(image, format=kind)  # type: ignore[arg-type]
        assert b"at home" not in data


def test_a_large_photograph_is_kept_smaller() -> None:
    kept = Image.open(io.BytesIO(kept_picture(Image.new("RGB", (STORED_SIDE * 2, 400)))))
    assert kept.size == (STORED_SIDE, 200)
