"""Photographs from strangers: checked by their bytes first, decoded after, metadata left behind.

Order of checks: size in bytes, container format, completeness, pixel count from the header; only then is a pixel
decoded. What comes out is plain 8-bit RGB, upright, without any metadata. Knows no concept and no model.
"""

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

from omnifarm.backbone.image_ops import to_rgb
from omnifarm.errors import ConceptError

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""File names that are read as photographs."""
OTHER_PICTURE_SUFFIXES = (".heic", ".heif", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".svg", ".dng", ".jxl")
"""File names that look like photographs but are not read; loaders say so instead of passing over them."""

Refusal = Literal["too_large", "format", "unusable"]
"""Why a photograph is refused: bytes or pixels, another format, or anything else about it."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FOREIGN = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"<svg", "an SVG"),
    (b"<?xml", "an XML text"),
    (b"<!DOC", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
# Everything Pillow is known to raise on damaged files of the three formats.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """What a photograph may be."""

    max_bytes: int = 32 * 2**20
    """Bytes of the file."""
    max_pixels: int = 64_000_000
    """Width times height; a 48-megapixel phone photograph passes."""
    min_side: int = 16
    """Pixels of the shorter side."""
    max_aspect: float = 8.0
    """Longer side over shorter side."""


DEFAULT_LIMITS = ImageLimits()
"""Limits used where none are given."""


def read_image(data: bytes, *, where: str, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Check and decode one photograph.

    Args:
        data: The file's content (PNG, JPEG or WebP; of an animation the first frame is taken).
        where: File name for messages.
        limits: What is let in.

    Returns:
        An 8-bit sRGB image, EXIF orientation applied, alpha laid over white, no metadata. A colour profile is
        applied and dropped; one that cannot be read is dropped unapplied.

    Raises:
        ConceptError: Names the file, what was found and what to do; `facts` hold `file`, `what`, `fix` and a
            `reason` (`Refusal`).
    """
    if len(data) > limits.max_bytes:
        raise _refusal(
            where,
            f"holds {len(data):,} bytes, at most {limits.max_bytes:,} are read",
            "make it smaller (resize, recompress)",
            reason="too_large",
        )
    kind = _container(data, where)
    _require_complete(data, kind, where)
    try:
        with warnings.catch_warnings():
            # Pillow warns about sizes that our own check below refuses, and about odd metadata we drop.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[kind]) as opened:
                _require_size(opened.size, where, limits)
                turned = _upright(opened)
                return _plain(turned, profile=opened.info.get("icc_profile"))
    except ConceptError:
        raise
    except Image.DecompressionBombError as error:
        raise _refusal(
            where,
            f"has more pixels than the {limits.max_pixels:,} that are read",
            "make it smaller (resize)",
            reason="too_large",
        ) from error
    except _DECODER_ERRORS as error:
        raise _refusal(
            where,
            f"starts like a {kind} file but cannot be decoded ({type(error).__name__}: {error})",
            "open it in a picture viewer and save it again, or leave it out",
        ) from error


def pixel_digest(image: Image.Image) -> str:
    """Return 64 hexadecimal digits: SHA-256 of an RGB image's size and pixels, whatever file it came from."""
    if image.mode != "RGB":
        raise ConceptError(f"a pixel digest needs an RGB image, found mode {image.mode}; read it with read_image")
    digest = hashlib.sha256(f"rgb8:{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _container(data: bytes, where: str) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    found = "an empty file" if not data else f"bytes {data[:8].hex(' ')}"
    if data[4:8] == b"ftyp":
        found = {b"avif": "an AVIF"}.get(data[8:12], "a HEIC or other phone-camera container")
    for magic, name in _FOREIGN:
        if data.startswith(magic):
            found = name
    raise _refusal(
        where, f"is {found}, expected a PNG, JPEG or WebP photograph", "export it as JPEG or PNG", reason="format"
    )


def _require_complete(data: bytes, kind: str, where: str) -> None:
    """Refuse a file whose container says that bytes are missing at the end."""
    if kind == "PNG":
        complete = _has_png_end(data)
    elif kind == "JPEG":
        complete = data.rfind(b"\xff\xd9") > 0
    else:
        complete = int.from_bytes(data[4:8], "little") + 8 <= len(data)
    if not complete:
        raise _refusal(where, f"is a {kind} file cut off after {len(data):,} bytes", "copy or download it again")


def _has_png_end(data: bytes) -> bool:
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position += 12 + length
    return False


def _require_size(size: tuple[int, int], where: str, limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise _refusal(
            where,
            f"has {width}x{height} = {width * height:,} pixels, at most {limits.max_pixels:,} are read",
            "make it smaller (resize)",
            reason="too_large",
        )
    if min(size) < limits.min_side:
        raise _refusal(
            where,
            f"is {width}x{height} pixels, the shorter side must have at least {limits.min_side}",
            "use the original photograph instead of a thumbnail",
        )
    if max(size) > limits.max_aspect * min(size):
        raise _refusal(
            where,
            f"is {width}x{height} pixels, the longer side may be at most {limits.max_aspect:g} times the shorter",
            "crop it",
        )


def _upright(image: Image.Image) -> Image.Image:
    # Decode first: reading a PNG's metadata decodes too, and its error would be taken for one of the metadata.
    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except _DECODER_ERRORS:
        # Damaged metadata says nothing about the pixels; it is dropped in any case.
        orientation = None
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def _plain(image: Image.Image, *, profile: bytes | None) -> Image.Image:
    if profile:
        image = _in_srgb(image, profile)
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling.
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
    rgb = to_rgb(image)
    return Image.frombytes("RGB", rgb.size, rgb.tobytes())


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply a colour profile: a phone's wide colours would otherwise be learned as paler ones."""
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(given).lower():
            return image
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        colours = image.convert("RGB") if alpha is not None else image
        converted = ImageCms.profileToProfile(
            colours, given, ImageCms.createProfile("sRGB"), outputMode="RGB", inPlace=False
        )
    except (ImageCms.PyCMSError, *_DECODER_ERRORS):
        # A damaged profile, or one for another kind of picture, says nothing about the pixels.
        return image
    if converted is None:
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _refusal(where: str, what: str, fix: str, *, reason: Refusal = "unusable") -> ConceptError:
    return ConceptError(f"{where}: {what}; {fix}", file=where, what=what, fix=fix, reason=reason)
