"""Draws the eight places. A place has a seed, and every seed is another view: horizon, tones, furniture move.

Shapes are large and edges few: a background must not cost a small autoencoder what the subject needs.
"""

import random

from PIL import Image, ImageDraw

from omnifarm.miniature.pen import SUPERSAMPLING, Color, box, mix, oval

PLACES = ("beach", "forest", "city", "kitchen", "library", "desert", "snow", "park")

_SKY: tuple[Color, Color] = ((110, 190, 248), (214, 238, 252))


def draw_place(place: str, seed: int, *, size: int) -> Image.Image:
    """Return a view of a place.

    Args:
        place: One of `PLACES`.
        seed: Which view.
        size: Side of the image in pixels.

    Returns:
        An RGB image `size * SUPERSAMPLING` pixels wide and high.
    """
    rng = random.Random(f"{place}/{seed}")
    side = size * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side))
    _DRAW[place](_Board(canvas), rng)
    return canvas


class _Board:
    """Draws in hundredths of the image's side, origin at the top left."""

    def __init__(self, canvas: Image.Image) -> None:
        self._canvas = canvas
        self._draw = ImageDraw.Draw(canvas)
        self._unit = canvas.width / 100

    def poly(self, points: list[tuple[float, float]], color: Color) -> None:
        self._draw.polygon([(x * self._unit, y * self._unit) for x, y in points], fill=color)

    def rect(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        unit = self._unit
        self._draw.rectangle((left * unit, top * unit, right * unit - 1, bottom * unit - 1), fill=color)

    def fade(self, top: float, bottom: float, first: Color, second: Color) -> None:
        """Fill a band with a vertical gradient."""
        low, high = round(top * self._unit), round(bottom * self._unit)
        if high <= low:
            return
        strip = Image.new("RGB", (1, 12))
        strip.putdata([mix(first, second, i / 11) for i in range(12)])
        self._canvas.paste(strip.resize((self._canvas.width, high - low), Image.Resampling.BILINEAR), (0, low))


def _jitter(rng: random.Random, color: Color, amount: int = 14) -> Color:
    red, green, blue = (min(255, max(0, c + rng.randint(-amount, amount))) for c in color)
    return red, green, blue


def _beach(board: _Board, rng: random.Random) -> None:
    horizon, shore = rng.uniform(34, 46), rng.uniform(58, 68)
    board.fade(0, horizon, _jitter(rng, _SKY[0]), _jitter(rng, _SKY[1], 6))
    board.poly(oval(rng.uniform(10, 90), rng.uniform(10, 20), 8, 8), (255, 236, 120))
    board.fade(horizon, shore + 6, _jitter(rng, (30, 110, 200)), _jitter(rng, (70, 190, 220)))
    sand = _jitter(rng, (246, 214, 140))
    tilt = rng.uniform(-5, 5)
    board.rect(0, shore + 6, 100, 100, sand)
    board.poly([(0, shore + tilt), (100, shore - tilt), (100, 100), (0, 100)], sand)
    board.poly(
        [(0, shore + tilt), (100, shore - tilt), (100, shore - tilt + 3), (0, shore + tilt + 3)], (250, 250, 245)
    )


def _forest(board: _Board, rng: random.Random) -> None:
    ground = rng.uniform(68, 76)
    board.fade(0, ground, _jitter(rng, (150, 205, 170)), _jitter(rng, (190, 225, 170)))
    x = rng.uniform(-6, 4)
    while x < 104:
        wide, top = rng.uniform(11, 16), rng.uniform(-6, 22)
        green = _jitter(rng, (30, 104, 56), 20)
        board.rect(x - 3, ground - 12, x + 3, ground + 3, (104, 70, 44))
        board.poly([(x - wide, ground - 6), (x, top), (x + wide, ground - 6)], green)
        x += rng.uniform(17, 25)
    board.rect(0, ground, 100, 100, _jitter(rng, (70, 128, 52)))


def _city(board: _Board, rng: random.Random) -> None:
    street = rng.uniform(72, 80)
    board.fade(0, street, _jitter(rng, (150, 190, 230)), _jitter(rng, (226, 226, 236)))
    x = rng.uniform(-8, 0)
    while x < 100:
        wide, top = rng.uniform(18, 26), rng.uniform(8, 40)
        wall = _jitter(rng, rng.choice([(120, 126, 150), (168, 118, 106), (104, 124, 136), (150, 140, 160)]), 12)
        board.rect(x, top, x + wide, street, wall)
        light = mix(wall, (255, 240, 170), 0.65)
        for row in range(int((street - top - 8) // 15)):
            for column in range(2):
                left = x + wide * (0.16 + 0.42 * column)
                board.rect(left, top + 5 + row * 15, left + wide * 0.26, top + 14 + row * 15, light)
        x += wide + rng.uniform(0, 3)
    board.rect(0, street, 100, 100, _jitter(rng, (92, 94, 104), 10))
    board.rect(0, street, 100, street + 3, (196, 196, 200))


def _kitchen(board: _Board, rng: random.Random) -> None:
    table = rng.uniform(66, 74)
    board.rect(0, 0, 100, table, _jitter(rng, (250, 232, 196)))
    wood = _jitter(rng, (190, 120, 70))
    shift = rng.uniform(-14, 14)
    for index in range(-1, 5):
        left = shift + index * 27
        board.rect(left, 0, left + 25, 20, wood)
        board.poly(oval(left + 12.5, 15, 2.4, 2.4), (250, 230, 160))
    board.rect(0, 20, 100, 23, mix(wood, (40, 20, 10), 0.4))
    tile = _jitter(rng, (150, 205, 205))
    for index in range(-1, 9):
        left = shift + index * 14
        board.rect(left, table - 14, left + 12, table, tile if index % 2 else mix(tile, (255, 255, 255), 0.5))
    board.rect(0, table, 100, 100, _jitter(rng, (176, 172, 176)))
    board.rect(0, table, 100, table + 4, (232, 232, 232))


def _library(board: _Board, rng: random.Random) -> None:
    floor = rng.uniform(76, 84)
    board.rect(0, 0, 100, floor, _jitter(rng, (84, 50, 34), 8))
    pitch = rng.uniform(24, 28)
    for row in range(3):
        top = 3 + row * pitch
        x = rng.uniform(-5, 0)
        while x < 100:
            wide, tall = rng.uniform(6, 9), rng.uniform(13, 18)
            tone = rng.choice([(150, 50, 48), (60, 96, 140), (70, 120, 80), (200, 150, 70), (120, 76, 130)])
            board.rect(x, top + 19 - tall, x + wide, top + 19, _jitter(rng, tone, 10))
            x += wide + 0.8
        board.rect(0, top + 19, 100, top + 23, (140, 90, 54))
    board.rect(0, floor, 100, 100, _jitter(rng, (128, 52, 54), 10))


def _desert(board: _Board, rng: random.Random) -> None:
    horizon = rng.uniform(50, 60)
    board.fade(0, horizon + 7, _jitter(rng, (250, 196, 110)), _jitter(rng, (253, 226, 170)))
    dune = _jitter(rng, (216, 150, 80))
    board.poly(oval(rng.uniform(0, 100), horizon + 14, 62, 26), mix(dune, (150, 80, 40), 0.25))
    board.rect(0, horizon + 6, 100, 100, dune)
    for x in (rng.uniform(4, 24), rng.uniform(76, 96)):
        base, tall = horizon + rng.uniform(10, 18), rng.uniform(30, 40)
        green = _jitter(rng, (56, 130, 74))
        board.poly(box(x - 4, base - tall, x + 4, base, radius=4), green)
        board.poly(box(x - 12, base - tall * 0.75, x - 7, base - tall * 0.4, radius=2.4), green)
        board.rect(x - 12, base - tall * 0.48, x, base - tall * 0.38, green)


def _snow(board: _Board, rng: random.Random) -> None:
    horizon = rng.uniform(54, 64)
    board.fade(0, horizon + 11, _jitter(rng, (150, 180, 214)), _jitter(rng, (224, 234, 246), 6))
    for _ in range(3):
        x, top = rng.uniform(0, 100), rng.uniform(10, 24)
        rock = _jitter(rng, (120, 136, 168))
        wide = rng.uniform(28, 38)
        board.poly([(x - wide, horizon + 11), (x, top), (x + wide, horizon + 11)], rock)
        share = 0.36
        tip = top + (horizon + 11 - top) * share
        board.poly([(x - wide * share, tip), (x, top), (x + wide * share, tip)], (250, 252, 255))
    board.poly(oval(rng.uniform(10, 90), horizon + 12, 80, 18), (240, 245, 252))
    board.rect(0, horizon + 10, 100, 100, (246, 249, 254))


def _park(board: _Board, rng: random.Random) -> None:
    horizon = rng.uniform(54, 64)
    board.fade(0, horizon + 13, _jitter(rng, _SKY[0]), _jitter(rng, _SKY[1], 6))
    for x, y in ((rng.uniform(5, 45), rng.uniform(8, 18)), (rng.uniform(55, 95), rng.uniform(8, 24))):
        for dx, dy, r in ((-8, 2, 6), (0, 0, 8), (8, 2, 6)):
            board.poly(oval(x + dx, y + dy, r, r * 0.8), (252, 253, 255))
    grass = _jitter(rng, (120, 200, 80))
    board.poly(oval(rng.uniform(10, 90), horizon + 14, 70, 24), grass)
    board.rect(0, horizon + 12, 100, 100, mix(grass, (60, 140, 40), 0.25))
    x = rng.choice([rng.uniform(4, 20), rng.uniform(80, 96)])
    board.rect(x - 4, horizon - 12, x + 4, horizon + 16, (126, 84, 52))
    leaf = _jitter(rng, (66, 160, 70))
    for dx, dy in ((-9, -16), (9, -16), (0, -27)):
        board.poly(oval(x + dx, horizon + dy, 14, 13), leaf)


_DRAW = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "kitchen": _kitchen,
    "library": _library,
    "desert": _desert,
    "snow": _snow,
    "park": _park,
}
