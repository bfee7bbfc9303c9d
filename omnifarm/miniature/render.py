"""Turns a scene into pixels: 96 by 96, supersampled, the same scene always the same picture."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from omnifarm.miniature.draw_item import draw_item
from omnifarm.miniature.draw_object import draw_object
from omnifarm.miniature.draw_person import draw_person
from omnifarm.miniature.draw_pet import draw_pet
from omnifarm.miniature.draw_place import draw_place
from omnifarm.miniature.palette import INK
from omnifarm.miniature.pen import SUPERSAMPLING, Pen
from omnifarm.miniature.scene import Placed, Scene

SIZE = 96
"""Side of every picture in pixels."""

_LOOKS = {"front": 0.0, "left": -1.0, "right": 1.0}


def render(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene.

    Returns:
        RGB pixels (96, 96, 3), uint8.
    """
    canvas = _background(scene.place, scene.view).copy()
    for placed in sorted(scene.subjects, key=lambda placed: placed.height):
        _draw_subject(canvas, placed)
    if scene.item is not None:
        floating = scene.item.kind in ("balloon", "kite")
        x = 17.0 if scene.item_side == "left" else SIZE - 17.0
        pen = Pen(canvas, x=x, y=66.0 if floating else 92.0, height=36, mirrored=scene.item_side == "right", ink=INK)
        draw_item(pen, scene.item.kind, scene.item.color)
    return _finish(canvas.reduce(SUPERSAMPLING), scene)


def subject_mask(scene: Scene, index: int) -> NDArray[np.bool_]:
    """Return (96, 96) booleans, True where subject `index` changes the picture."""
    seen, gone = render(scene).astype(np.int16), render(scene.without(index)).astype(np.int16)
    mask: NDArray[np.bool_] = np.abs(seen - gone).max(axis=-1) > 4
    return mask


@lru_cache(maxsize=512)
def _background(place: str, view: int) -> Image.Image:
    return draw_place(place, view, size=SIZE)


def _draw_subject(canvas: Image.Image, placed: Placed) -> None:
    pen = Pen(canvas, x=placed.x, y=placed.y, height=placed.height, mirrored=placed.mirrored, ink=INK)
    look = _LOOKS[placed.look] * (-1 if placed.mirrored else 1)
    group = placed.identity.group
    if group == "person":
        draw_person(pen, placed.identity, look=look, hand_raised=placed.hand_raised)
    elif group == "pet":
        draw_pet(pen, placed.identity, look=look)
    else:
        draw_object(pen, placed.identity)


_LIGHT_GAIN = {
    "sunset": np.array([[1.0, 0.8, 0.68], [1.0, 0.72, 0.55]], np.float32),
    "night": np.array([[0.5, 0.55, 0.8], [0.66, 0.69, 0.9]], np.float32),
}
_LIGHT_LIFT = {"sunset": (22.0, 2.0, 4.0), "night": (2.0, 4.0, 20.0)}
_ROWS = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None]


def _finish(image: Image.Image, scene: Scene) -> NDArray[np.uint8]:
    if scene.style == "painting":
        image = image.filter(ImageFilter.MedianFilter(5))
    pixels = np.asarray(image, dtype=np.uint8)
    if scene.light != "day":
        top, bottom = _LIGHT_GAIN[scene.light]
        gain = (top * (1 - _ROWS) + bottom * _ROWS)[:, None, :]
        lit = pixels * gain + np.array(_LIGHT_LIFT[scene.light], np.float32)
        pixels = np.clip(lit, 0, 255).astype(np.uint8)
    if scene.style == "sketch":
        pixels = _sketch(pixels)
    elif scene.style == "painting":
        pixels = _painting(pixels)
    return pixels


def _sketch(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    gray = (pixels.astype(np.float32) @ np.array([0.3, 0.59, 0.11], np.float32)) / 255
    edges = np.zeros_like(gray)
    edges[:, 1:] += np.abs(np.diff(gray, axis=1))
    edges[1:] += np.abs(np.diff(gray, axis=0))
    paper = np.clip(0.42 + 0.58 * gray - 0.9 * np.clip(edges - 0.05, 0, 1), 0.05, 1)
    tinted = paper[:, :, None] * np.array([250, 247, 238], np.float32)
    sketched: NDArray[np.uint8] = tinted.astype(np.uint8)
    return sketched


_STROKES = ((np.add.outer(np.arange(SIZE), np.arange(SIZE)) % 8) < 4).astype(np.float32)[:, :, None]


def _painting(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    values = pixels.astype(np.float32)
    gray = values.mean(axis=-1, keepdims=True)
    vivid = gray + (values - gray) * 1.2 + (_STROKES - 0.5) * 14 + np.array([14, 4, -16], np.float32)
    painted: NDArray[np.uint8] = np.clip(vivid, 0, 255).astype(np.uint8)
    return painted
