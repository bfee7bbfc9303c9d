"""Draws small companions and favourite things, in figure units (see `pen`)."""

from omnifarm.miniature.palette import INK, PAINT, WHITE, shade
from omnifarm.miniature.pen import Color, Pen, box, oval

TOYS = ("ball", "balloon", "flower", "book", "kite", "drum")
"""Things that somebody may like best."""

FRIENDS = ("bird", "turtle", "snail")
"""Small animals that may keep somebody company."""


def draw_item(pen: Pen, kind: str, color_name: str) -> None:
    """Draw one of `TOYS` or `FRIENDS` in a colour."""
    _DRAW[kind](pen, PAINT[color_name])


def _ball(pen: Pen, color: Color) -> None:
    pen.fill(oval(0, -40, 40, 40), color, outlined=True)
    pen.fill(box(-40, -48, 40, -32), WHITE)
    pen.ring(oval(0, -40, 40, 40), pen.ink, 7)


def _balloon(pen: Pen, color: Color) -> None:
    pen.stroke([(0, -30), (-6, -14), (4, 0)], INK, 6)
    pen.fill([(-10, -26), (10, -26), (0, -38)], color, outlined=True)
    pen.fill(oval(0, -70, 34, 40), color, outlined=True)
    pen.fill(oval(-12, -84, 8, 12, turn=0.4), WHITE)


def _flower(pen: Pen, color: Color) -> None:
    pen.stroke([(0, -50), (0, 0)], (40, 130, 60), 12)
    pen.fill(oval(18, -18, 18, 9, turn=-0.5), (40, 150, 64))
    for x, y in ((0, -92), (24, -75), (15, -48), (-15, -48), (-24, -75)):
        pen.fill(oval(x, y, 19, 19), color, outlined=True)
    pen.fill(oval(0, -68, 15, 15), WHITE if color == PAINT["yellow"] else PAINT["yellow"], outlined=True)


def _book(pen: Pen, color: Color) -> None:
    pen.fill(box(-38, -78, 38, -2, radius=5), color, outlined=True)
    pen.fill(box(-38, -18, 38, -8), WHITE)
    pen.fill(box(-22, -64, 22, -42, radius=3), WHITE)


def _kite(pen: Pen, color: Color) -> None:
    pen.stroke([(0, -30), (12, -16), (-4, -4)], INK, 6)
    pen.fill([(0, -104), (38, -66), (0, -24), (-38, -66)], color, outlined=True)
    pen.stroke([(0, -100), (0, -28)], WHITE, 8)
    pen.stroke([(-34, -66), (34, -66)], WHITE, 8)


def _drum(pen: Pen, color: Color) -> None:
    pen.fill(box(-38, -64, 38, -4, radius=8), color, outlined=True)
    pen.fill(oval(0, -64, 38, 14), WHITE, outlined=True)
    pen.stroke([(-34, -44), (-12, -10), (12, -44), (34, -10)], WHITE, 8)


def _bird(pen: Pen, color: Color) -> None:
    pen.fill([(34, -52), (60, -44), (34, -36)], PAINT["orange"], outlined=True)
    pen.fill([(-24, -40), (-56, -58), (-46, -26)], color, outlined=True)
    pen.fill(oval(0, -44, 38, 40), color, outlined=True)
    pen.fill(oval(-10, -34, 20, 14, turn=0.3), shade(color, 0.3))
    pen.fill(oval(17, -58, 11, 11), WHITE)
    pen.fill(oval(19, -57, 7, 7), INK)
    pen.stroke([(-8, -6), (-8, 2)], INK, 7)
    pen.stroke([(10, -6), (10, 2)], INK, 7)


def _turtle(pen: Pen, color: Color) -> None:
    skin = (150, 200, 90) if color != PAINT["green"] else (230, 200, 120)
    for x in (-24, 20):
        pen.fill(box(x - 11, -18, x + 11, 0, radius=6), skin, outlined=True)
    pen.fill(oval(46, -34, 19, 19), skin, outlined=True)
    pen.fill(oval(50, -38, 6, 7), INK)
    dome = [(x, min(y, -14)) for x, y in oval(-4, -14, 44, 52)]
    pen.fill(dome, color, outlined=True)
    pen.fill(oval(-4, -40, 14, 13), shade(color, 0.4))


def _snail(pen: Pen, color: Color) -> None:
    skin = (240, 200, 150)
    pen.fill(box(-42, -20, 52, 0, radius=9), skin, outlined=True)
    pen.limb((40, -14), (46, -46), skin, 15)
    pen.fill(oval(48, -52, 6, 7), INK)
    pen.fill(oval(-6, -46, 38, 38), color, outlined=True)
    pen.ring(oval(-4, -46, 19, 19), WHITE, 9)


_DRAW = {
    "ball": _ball,
    "balloon": _balloon,
    "flower": _flower,
    "book": _book,
    "kite": _kite,
    "drum": _drum,
    "bird": _bird,
    "turtle": _turtle,
    "snail": _snail,
}
