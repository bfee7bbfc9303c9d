"""Draws a thing in figure units (see `pen`)."""

import math

from omnifarm.miniature.identity import NONE, Identity
from omnifarm.miniature.palette import INK, PAINT, WHITE, shade
from omnifarm.miniature.pen import Color, Pen, Point, box, mix, oval

_GLASS: Color = (188, 226, 246)
_STEEL: Color = (120, 126, 140)


def draw_object(pen: Pen, identity: Identity) -> None:
    """Draw one object of group "object"."""
    x, y, size = _DRAW[identity.noun](pen, PAINT[identity["color"]], PAINT[identity["second"]], identity["pattern"])
    if identity["emblem"] != NONE:
        second = identity["second"]
        disc = INK if second in ("white", "yellow") else WHITE
        pen.fill(oval(x, y, size, size), disc, outlined=True)
        pen.fill(emblem(identity["emblem"], x, y, size * 0.78), PAINT[second])


def emblem(name: str, x: float, y: float, size: float) -> list[Point]:
    """Return a star, heart or moon around (x, y) as a polygon."""
    if name == "star":
        radii = [size if i % 2 == 0 else size * 0.48 for i in range(10)]
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    if name == "heart":
        turns = [math.tau * i / 30 for i in range(30)]
        heart = [
            (16 * math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t))) for t in turns
        ]
        return [(x + u * size / 16, y + v * size / 16) for u, v in heart]
    outer = [(0.95 * math.cos(a), 0.95 * math.sin(a)) for a in (0.9 + 4.5 * i / 16 for i in range(17))]
    inner = [(0.42 + 0.62 * math.cos(a), 0.62 * math.sin(a)) for a in (5.0 - 3.75 * i / 12 for i in range(13))]
    return [(x + size * u, y + size * v) for u, v in (*outer, *inner)]


def _mug(pen: Pen, color: Color, second: Color, pattern: str) -> tuple[float, float, float]:
    pen.ring(oval(33, -40, 17, 20), pen.ink, 14)
    pen.ring(oval(33, -40, 17, 20), second, 9)
    pen.cloth(box(-36, -78, 32, -2, radius=9), color, second, pattern, pitch=12)
    pen.fill(oval(-2, -78, 34, 9), second, outlined=True)
    pen.fill(oval(-2, -78, 26, 5.5), shade(second, 0.6))
    return -2, -37, 19


def _backpack(pen: Pen, color: Color, second: Color, pattern: str) -> tuple[float, float, float]:
    pen.ring(oval(0, -90, 11, 11), pen.ink, 9)
    pen.ring(oval(0, -90, 11, 11), second, 5)
    for side in (-1, 1):
        pen.limb((side * 38, -48), (side * 38, -16), second, 10)
    pen.cloth(box(-36, -90, 36, -1, radius=22), color, second, pattern, pitch=12)
    pen.fill(box(-27, -32, 27, -4, radius=7), second, outlined=True)
    pen.stroke([(-18, -24), (18, -24)], shade(second, 0.5), 4)
    return 0, -58, 18


def _lamp(pen: Pen, color: Color, second: Color, pattern: str) -> tuple[float, float, float]:
    pen.limb((0, -6), (0, -45), second, 8)
    pen.fill([(-24, -1), (24, -1), (15, -13), (-15, -13)], second, outlined=True)
    pen.fill(oval(0, -44, 10, 8), (255, 246, 170), outlined=True)
    pen.cloth([(-22, -100), (22, -100), (43, -45), (-43, -45)], color, second, pattern, pitch=12)
    return 0, -69, 17


def _vase(pen: Pen, color: Color, second: Color, pattern: str) -> tuple[float, float, float]:
    half = [(15.0, -84.0), (13.0, -72.0), (30.0, -56.0), (36.0, -36.0), (30.0, -14.0), (20.0, -1.0)]
    pen.cloth([*half, *((-x, y) for x, y in reversed(half))], color, second, pattern, pitch=12)
    pen.fill(box(-21, -96, 21, -83, radius=5), second, outlined=True)
    pen.fill(box(-23, -9, 23, 0, radius=4), second, outlined=True)
    return 0, -38, 19


def _car(pen: Pen, color: Color, second: Color, pattern: str) -> tuple[float, float, float]:
    pen.fill([(-30, -42), (-22, -74), (24, -74), (36, -42)], second, outlined=True)
    pen.fill([(-21, -44), (-16, -67), (-2, -67), (-2, -44)], _GLASS, outlined=True)
    pen.fill([(4, -44), (4, -67), (19, -67), (27, -44)], _GLASS, outlined=True)
    pen.cloth(box(-50, -48, 52, -12, radius=10), color, second, pattern, pitch=12)
    pen.fill(oval(47, -32, 5, 6), (255, 240, 140), outlined=True)
    for x in (-28, 29):
        pen.fill(oval(x, -12, 14, 14), INK)
        pen.fill(oval(x, -12, 6.5, 6.5), mix(second, WHITE, 0.3))
    return 0, -30, 15


def _robot(pen: Pen, color: Color, second: Color, pattern: str) -> tuple[float, float, float]:
    pen.limb((0, -84), (0, -98), _STEEL, 4)
    pen.fill(oval(0, -100, 7, 7), PAINT["red"], outlined=True)
    for side in (-1, 1):
        pen.limb((side * 32, -40), (side * 40, -20), second, 10)
        pen.fill(box(side * 15 - 9, -10, side * 15 + 9, 0, radius=3), second, outlined=True)
    pen.cloth(box(-30, -50, 30, -7, radius=6), color, second, pattern, pitch=11)
    pen.fill(box(-28, -88, 28, -51, radius=8), second, outlined=True)
    for side in (-1, 1):
        pen.fill(oval(side * 12, -74, 8, 8), WHITE, outlined=True)
        pen.fill(oval(side * 12, -74, 4, 4), INK)
    pen.fill(box(-13, -62, 13, -56), INK)
    return 0, -28, 17


_DRAW = {"mug": _mug, "backpack": _backpack, "lamp": _lamp, "vase": _vase, "car": _car, "robot": _robot}
