"""A pen with its own coordinates: shapes are given in a figure's units and land on a supersampled canvas.

Figure units: 100 are the nominal height of a figure, x is 0 on its axis and grows to the right, y is 0 at its feet
and negative above. The pen mirrors, scales and moves; everything becomes a polygon.
"""

import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageChops, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 3
"""Canvas pixels per image pixel and side."""

_TURNS = tuple((math.cos(math.tau * i / 28), math.sin(math.tau * i / 28)) for i in range(28))


def mix(first: Color, second: Color, share: float) -> Color:
    """Return the colour `share` of the way from `first` to `second`."""
    return (
        round(first[0] + (second[0] - first[0]) * share),
        round(first[1] + (second[1] - first[1]) * share),
        round(first[2] + (second[2] - first[2]) * share),
    )


def oval(x: float, y: float, rx: float, ry: float, *, turn: float = 0.0) -> list[Point]:
    """Return an ellipse around (x, y), turned by `turn` radians, as a polygon."""
    c, s = math.cos(turn), math.sin(turn)
    return [(x + rx * u * c - ry * v * s, y + rx * u * s + ry * v * c) for u, v in _TURNS]


def box(left: float, top: float, right: float, bottom: float, *, radius: float = 0.0) -> list[Point]:
    """Return a rectangle with rounded corners as a polygon."""
    if radius <= 0:
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    corners: tuple[Point, ...] = (
        (right - radius, bottom - radius),
        (left + radius, bottom - radius),
        (left + radius, top + radius),
        (right - radius, top + radius),
    )
    points = []
    for quarter, (x, y) in enumerate(corners):
        for i in range(7):
            angle = (quarter + i / 6) * math.pi / 2
            points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points


class Pen:
    """Draws polygons in figure units.

    Args:
        canvas: RGB image that is drawn on, in canvas pixels.
        x: Where the figure's axis stands, in image pixels.
        y: Where its feet stand, in image pixels.
        height: What 100 units measure, in image pixels.
        mirrored: Whether x is reversed.
        ink: Colour of the outlines.
    """

    def __init__(
        self,
        canvas: Image.Image,
        *,
        x: float,
        y: float,
        height: float,
        mirrored: bool = False,
        ink: Color = (40, 32, 48),
    ) -> None:
        self.canvas = canvas
        self.ink = ink
        self._draw = ImageDraw.Draw(canvas)
        self._unit = height / 100 * SUPERSAMPLING
        self._across = -self._unit if mirrored else self._unit
        self._x = x * SUPERSAMPLING
        self._y = y * SUPERSAMPLING
        self._line = max(2, round(1.3 * SUPERSAMPLING))

    def _place(self, points: Iterable[Point]) -> list[Point]:
        return [(self._x + x * self._across, self._y + y * self._unit) for x, y in points]

    def fill(self, points: Sequence[Point], color: Color, *, outlined: bool = False) -> None:
        """Fill a polygon, with or without an ink outline."""
        placed = self._place(points)
        self._draw.polygon(placed, fill=color)
        if outlined:
            self._outline(placed)

    def stroke(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Draw an open line `width` units thick with round joints."""
        placed = self._place(points)
        pixels = max(1, round(width * self._unit))
        self._draw.line(placed, fill=color, width=pixels, joint="curve")

    def ring(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Draw a closed line `width` units thick."""
        placed = self._place(points)
        pixels = max(1, round(width * self._unit))
        self._draw.line([*placed, *placed[:2]], fill=color, width=pixels, joint="curve")

    def limb(self, start: Point, end: Point, color: Color, width: float) -> None:
        """Draw an outlined thick line with round ends."""
        margin = 2 * self._line / self._unit
        for tone, thick in ((self.ink, width + margin), (color, width)):
            self.stroke([start, end], tone, thick)
            for x, y in (start, end):
                self.fill(oval(x, y, thick / 2, thick / 2), tone)

    def cloth(
        self,
        points: Sequence[Point],
        color: Color,
        second: Color,
        pattern: str,
        *,
        pitch: float = 11.0,
        plain_line: bool = True,
    ) -> None:
        """Fill a polygon with a pattern of two colours and outline it.

        Args:
            points: The polygon.
            color: Ground colour.
            second: Colour of stripes, dots or squares.
            pattern: "plain", "striped", "dotted", "spotted" or "checked".
            pitch: Width of a stripe or square in units; kept large so that it survives an 8-fold downsampling.
            plain_line: Whether to draw the outline.
        """
        placed = self._place(points)
        self._draw.polygon(placed, fill=color)
        if pattern != "plain":
            xs, ys = [p[0] for p in placed], [p[1] for p in placed]
            left, top = max(0, int(min(xs))), max(0, int(min(ys)))
            right, bottom = min(self.canvas.width, int(max(xs)) + 1), min(self.canvas.height, int(max(ys)) + 1)
            if right > left and bottom > top:
                shape = Image.new("L", (right - left, bottom - top))
                ImageDraw.Draw(shape).polygon([(px - left, py - top) for px, py in placed], fill=255)
                marks = Image.new("L", shape.size)
                marker = ImageDraw.Draw(marks)
                for polygon in _marks(pattern, points, pitch):
                    marker.polygon([(px - left, py - top) for px, py in self._place(polygon)], fill=255)
                self.canvas.paste(second, (left, top), ImageChops.darker(shape, marks))
        if plain_line:
            self._outline(placed)

    def _outline(self, placed: list[Point]) -> None:
        self._draw.line([*placed, *placed[:2]], fill=self.ink, width=self._line, joint="curve")


def _marks(pattern: str, points: Sequence[Point], pitch: float) -> Iterable[list[Point]]:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    middle = (left + right) / 2
    columns = int((right - left) / 2 / pitch) + 2
    rows = int((bottom - top) / pitch) + 2
    if pattern == "striped":
        for row in range(0, rows, 2):
            y = top + (row + 0.6) * pitch
            yield box(left, y, right, y + pitch)
    elif pattern == "checked":
        for row in range(rows):
            for column in range(-columns, columns):
                if (row + column) % 2 == 0:
                    x, y = middle + (column + 0.5) * pitch, top + row * pitch
                    yield box(x, y, x + pitch, y + pitch)
    else:
        radius, step = (0.62 * pitch, 1.75 * pitch) if pattern == "dotted" else (0.85 * pitch, 2.1 * pitch)
        for row in range(rows):
            for column in range(-columns, columns + 1):
                x = middle + (column + (0.5 if row % 2 else 0.0)) * step
                y = top + 0.75 * pitch + row * step * 0.85
                if pattern == "dotted":
                    yield oval(x, y, radius, radius)
                else:
                    yield oval(x, y, radius * 1.15, radius * 0.9, turn=0.5)
