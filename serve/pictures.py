"""Pictures from and to clients: checked before a pixel is decoded, by the same intake as training photographs.

What the model and the store see is what was decoded here and nothing of the file it came in. A small file can become 150 MB
of pixels, so few pictures are decoded at a time, and one that is for the backbone is made as small as the backbone takes it
before the next one's turn.
"""

import base64
import binascii
import io
import re
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import anyio
from PIL import Image

from omnifarm.backbone.image_ops import ImageTransform
from omnifarm.concept.images import ImageLimits, read_image
from omnifarm.errors import ConceptError, RequestError
from serve.errors import TooLargeError, UnsupportedMediaError
from serve.settings import ServeSettings
from serve.threads import to_the_end

OutputFormat = Literal["png", "jpeg", "webp"]
"""Formats a drawn picture can be had in."""
Decoded = TypeVar("Decoded")
STORED_SIDE = 2048
"""Longer side, in pixels, of an uploaded photograph as it is kept: no backbone looks at more."""

MAX_DECODERS = 2
"""Pictures that a replica decodes at the same time."""

_DATA_URL = re.compile(r"\Adata:[\w.+-]+/[\w.+-]+;base64,")


class Intake:
    """Decodes the pictures of a replica's requests, a few at a time; used by its event loop only.

    Args:
        settings: For the limits.
        rule: The size at which the backbone takes a picture.
    """

    def __init__(self, settings: ServeSettings, *, rule: ImageTransform) -> None:
        self._settings = settings
        self._rule = rule
        self._limiter = anyio.CapacityLimiter(MAX_DECODERS)

    async def picture(self, data: bytes, *, field: str = "image") -> Image.Image:
        """Return a picture for the backbone, no larger than it will look at; errors of `decode_picture`."""

        def decode() -> Image.Image:
            return fitted(decode_picture(data, settings=self._settings, field=field), rule=self._rule)

        return await self.run(decode)

    async def mask(self, data: bytes, *, size: tuple[int, int]) -> Image.Image:
        """Return a mask; arguments and errors of `decode_mask`."""
        return await self.run(partial(decode_mask, data, settings=self._settings, size=size))

    async def run(self, decode: Callable[[], Decoded]) -> Decoded:
        """Run something that decodes pictures in a thread, when it is its turn; whoever leaves keeps the turn till then."""
        return await to_the_end(decode, limiter=self._limiter)


def fitted(image: Image.Image, *, rule: ImageTransform) -> Image.Image:
    """Return a picture at the size at which the backbone takes it, if that is smaller.

    The backbone resizes what it gets by the same rule, which leaves alone what has its size: nothing changes but memory.
    """
    width, height = rule.size(image.size)
    return rule.resize(image) if width * height < image.width * image.height else image


def decode_picture(data: bytes, *, settings: ServeSettings, field: str = "image") -> Image.Image:
    """Return the picture as upright 8-bit sRGB without metadata.

    Args:
        data: The bytes as they came.
        settings: For the limits.
        field: The request's field, for messages.

    Raises:
        TooLargeError: More bytes or pixels than this server reads.
        UnsupportedMediaError: Not a PNG, JPEG or WebP file.
        RequestError: Damaged, too small or too narrow.
    """
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_pixels)
    kinds: dict[str, type[RequestError]] = {"too_large": TooLargeError, "format": UnsupportedMediaError}
    try:
        return read_image(data, where=field, limits=limits)
    except ConceptError as error:
        kind = kinds.get(str(error.facts.get("reason")), RequestError)
        raise kind(error.message, field=field) from None


def decode_mask(data: bytes, *, settings: ServeSettings, size: tuple[int, int]) -> Image.Image:
    """Return a mask as 8-bit grey of `size` (width, height): 255 where the picture may change.

    As with OpenAI, it may change where the mask is fully transparent.

    Raises:
        TooLargeError: More bytes or pixels than this server reads.
        UnsupportedMediaError: Not a PNG file.
        RequestError: Damaged, or without transparency.
    """
    decode_picture(data, settings=settings, field="mask")
    with Image.open(io.BytesIO(data), formats=["PNG", "WEBP", "JPEG"]) as opened:
        if "A" not in opened.getbands() and "transparency" not in opened.info:
            raise RequestError(
                "expected a mask with transparent areas (a PNG with alpha), found an opaque picture", field="mask"
            )
        alpha = opened.convert("RGBA").getchannel("A")
    return alpha.point(lambda value: 255 if value == 0 else 0).resize(size, Image.Resampling.NEAREST)


def from_base64(text: str, *, field: str = "image") -> bytes:
    """Return the bytes of a base64 text, with or without a `data:` prefix.

    Raises:
        RequestError: It is no base64.
    """
    try:
        return base64.b64decode(_DATA_URL.sub("", text), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"expected base64 in {field}, found something else", field=field) from None


def is_data_url(text: str) -> bool:
    """Whether `text` is a picture inside a URL."""
    return text.startswith("data:")


def encode_picture(image: Image.Image, *, format: OutputFormat = "png", quality: int = 95) -> bytes:
    """Return the picture as a file without metadata; `quality` (0 to 100) is for JPEG and WebP."""
    buffer = io.BytesIO()
    if format == "png":
        image.save(buffer, format="PNG")
    else:
        image.save(buffer, format=format.upper(), quality=quality)
    return buffer.getvalue()


def kept_picture(image: Image.Image) -> bytes:
    """Return an uploaded photograph as it is stored: a PNG of at most `STORED_SIDE` pixels a side."""
    if max(image.size) > STORED_SIDE:
        image = image.copy()
        image.thumbnail((STORED_SIDE, STORED_SIDE), Image.Resampling.LANCZOS)
    return encode_picture(image)
