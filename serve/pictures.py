"""Pictures from clients: checked before a pixel is decoded, by the same intake as training photographs."""

from PIL.Image import Image

from omnifarm.concept.images import ImageLimits, read_image
from omnifarm.errors import ConceptError, RequestError
from serve.errors import TooLargeError, UnsupportedMediaError
from serve.settings import ServeSettings


def decode_picture(data: bytes, *, settings: ServeSettings) -> Image:
    """Return the picture as upright 8-bit RGB without metadata.

    Args:
        data: The bytes as they came.
        settings: For the limits.

    Raises:
        TooLargeError: More bytes or pixels than this server reads.
        UnsupportedMediaError: Not a PNG, JPEG or WebP file.
        RequestError: Damaged, too small or too narrow.
    """
    limits = ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels)
    try:
        return read_image(data, where="image", limits=limits)
    except ConceptError as error:
        # The intake says what is wrong in words; only here do these words have to become a status.
        what = str(error.facts.get("what", ""))
        kind = RequestError
        if "expected a PNG, JPEG or WebP" in what:
            kind = UnsupportedMediaError
        elif "are read" in what:
            kind = TooLargeError
        raise kind(error.message, field="image") from None
