"""Draws a man or a woman, from the waist up, in figure units (see `pen`)."""

import math

from omnifarm.miniature.identity import NONE, Identity
from omnifarm.miniature.palette import INK, PAINT, SKIN, WHITE, contrast, shade
from omnifarm.miniature.pen import Color, Pen, Point, box, mix, oval

HEAD_Y = -60.0
"""Height of the middle of the head."""


def draw_person(pen: Pen, identity: Identity, *, look: float = 0.0, hand_raised: bool = False) -> Point:
    """Draw one person.

    Args:
        pen: Where to.
        identity: Of group "person".
        look: Where the face points, from -1 (left) over 0 (to the viewer) to 1 (right).
        hand_raised: Whether the right hand is up.

    Returns:
        The middle of the hand that may hold something, in figure units.
    """
    skin = SKIN[identity["skin"]]
    hair = PAINT[identity["hair_color"]]
    woman = identity.noun == "woman"
    turn = 9.0 * look
    _hair_behind(pen, identity["hair_style"], hair)
    hand = _body(pen, identity, skin, woman=woman, hand_raised=hand_raised)
    _head(pen, skin, woman=woman, look=look)
    _hair_front(pen, identity["hair_style"], hair, turn)
    _face(pen, identity, skin, hair, turn, woman=woman)
    _hat(pen, identity["hat"], identity["hat_color"])
    return hand


def _body(pen: Pen, identity: Identity, skin: Color, *, woman: bool, hand_raised: bool) -> Point:
    shirt = PAINT[identity["shirt_color"]]
    wide = 27.0 if woman else 36.0
    sleeve = shade(shirt, 0.12)
    hand = (wide + 10.0, -60.0) if hand_raised else (wide + 2.0, -2.0)
    if hand_raised:
        pen.limb((wide - 5, -21), (wide + 7, -40), sleeve, 12)
        pen.limb((wide + 8, -47), hand, skin, 10)
        pen.fill(oval(hand[0], hand[1] - 3, 8, 8), skin, outlined=True)
    else:
        pen.limb((wide - 4, -20), (wide + 1, 4), sleeve, 13)
    pen.limb((4 - wide, -20), (-wide - 1, 4), sleeve, 13)
    torso = [(-11.0, -35.0), (11.0, -35.0), (wide - 5, -29.0), (wide, -20.0), (wide - 1, 6.0)]
    if woman:
        torso = [(-10.0, -34.0), (10.0, -34.0), (wide - 5, -29.0), (wide, -20.0), (wide - 7, -6.0), (wide, 8.0)]
    torso += [(-x, y) for x, y in reversed(torso)]
    pen.cloth(torso, shirt, contrast(identity["shirt_color"]), identity["shirt_pattern"], pitch=10.5)
    pen.fill(box(-8, -42, 8, -31, radius=3), shade(skin, 0.14))
    if woman:
        pen.fill([(-11, -35.5), (11, -35.5), (0, -23)], skin, outlined=True)
        pen.fill(box(-8, -42, 8, -33, radius=3), shade(skin, 0.14))
    return hand


def _head(pen: Pen, skin: Color, *, woman: bool, look: float) -> None:
    for side in (-1, 1):
        if look * side < 0.5:
            pen.fill(oval(side * 26 - 2 * look, HEAD_Y + 2, 5, 6), shade(skin, 0.08), outlined=True)
    if woman:
        pen.fill(oval(0, HEAD_Y, 25, 26), skin, outlined=True)
    else:
        pen.fill(box(-26, HEAD_Y - 27, 26, HEAD_Y + 26, radius=17), skin, outlined=True)


def _hair_behind(pen: Pen, style: str, hair: Color) -> None:
    if style == "long":
        pen.fill(box(-34, HEAD_Y - 30, 34, -14, radius=22), hair, outlined=True)
    elif style == "curly":
        for step in range(9):
            angle = math.pi * (1.0 + step / 8)
            pen.fill(oval(28 * math.cos(angle), HEAD_Y - 6 + 27 * math.sin(angle), 13, 13), hair, outlined=True)
    elif style == "braided":
        for side in (-1, 1):
            for y in (-50, -38, -26):
                pen.fill(oval(side * 33, y, 9, 9), hair, outlined=True)
            pen.fill(oval(side * 33, -15, 6, 7), hair, outlined=True)
    elif style == "tied":
        for side in (-1, 1):
            pen.fill(oval(side * 25, HEAD_Y - 27, 14, 14), hair, outlined=True)


def _hair_front(pen: Pen, style: str, hair: Color, turn: float) -> None:
    top = HEAD_Y - 31
    if style == "spiky":
        points = [(-28.0, HEAD_Y - 3)]
        for i in range(6):
            x = -28 + i * 56 / 6
            points += [(x - 2, HEAD_Y - 22), (x + 56 / 12, top - 13 + 6 * abs(i - 2.5) / 2)]
        points += [(29.0, HEAD_Y - 22), (28.0, HEAD_Y - 3), (21.0, HEAD_Y - 13), (-21.0, HEAD_Y - 13)]
        pen.fill(points, hair, outlined=True)
    elif style == "curly":
        for x, y in ((-22, -14), (22, -14), (-12, -22), (12, -22), (0, -25)):
            pen.fill(oval(x, HEAD_Y + y, 11, 10), hair)
    elif style == "short":
        points = _cap(27, HEAD_Y - 8, top)
        pen.fill(
            [
                *points,
                (28, HEAD_Y + 2),
                (21, HEAD_Y - 8),
                (19 + turn / 2, HEAD_Y - 15),
                (-10 + turn / 2, HEAD_Y - 17),
                (-22, HEAD_Y - 8),
                (-28, HEAD_Y + 2),
            ],
            hair,
            outlined=True,
        )
    elif style == "long":
        points = _cap(28, HEAD_Y - 4, top)
        pen.fill(
            [
                *points,
                (30, HEAD_Y + 14),
                (24, HEAD_Y + 4),
                (14 + turn, HEAD_Y - 16),
                (-2 + turn, HEAD_Y - 22),
                (-16 + turn, HEAD_Y - 13),
                (-24, HEAD_Y + 4),
                (-30, HEAD_Y + 14),
            ],
            hair,
            outlined=True,
        )
    else:
        points = _cap(27, HEAD_Y - 4, top)
        pen.fill(
            [
                *points,
                (26, HEAD_Y - 4),
                (14 + turn / 2, HEAD_Y - 15),
                (turn / 2, HEAD_Y - 22),
                (-14 + turn / 2, HEAD_Y - 15),
                (-26, HEAD_Y - 4),
            ],
            hair,
            outlined=True,
        )


def _cap(wide: float, low: float, top: float) -> list[Point]:
    """The upper half of an ellipse from left to right."""
    return [(-wide * math.cos(math.pi * i / 12), low - (low - top) * math.sin(math.pi * i / 12)) for i in range(13)]


def _face(pen: Pen, identity: Identity, skin: Color, hair: Color, turn: float, *, woman: bool) -> None:
    eye_y = HEAD_Y + 2
    if identity["beard"] == "beard":
        jaw = [(-27.0, HEAD_Y + 4), (-27.0, HEAD_Y + 18), (-18.0, HEAD_Y + 30), (18.0, HEAD_Y + 30)]
        jaw += [
            (27.0, HEAD_Y + 18),
            (27.0, HEAD_Y + 4),
            (15.0 + turn / 2, HEAD_Y + 12),
            (-15.0 + turn / 2, HEAD_Y + 12),
        ]
        pen.fill(jaw, hair, outlined=True)
    for side in (-1, 1):
        x = side * 11 + turn
        if woman:
            pen.fill(oval(side * 15 + turn, HEAD_Y + 12, 6, 4), mix(skin, (255, 90, 110), 0.5))
        _eye(pen, identity["glasses"], x, eye_y, side, hair, woman=woman)
    if identity["glasses"] != NONE:
        pen.stroke([(turn - 2, eye_y), (turn + 2, eye_y)], INK, 4)
    mouth_y = HEAD_Y + 18
    if woman:
        lips = [(turn - 8, mouth_y - 1), (turn - 3, mouth_y - 3.5), (turn, mouth_y - 2), (turn + 3, mouth_y - 3.5)]
        pen.fill([*lips, (turn + 8, mouth_y - 1), (turn + 4, mouth_y + 4), (turn - 4, mouth_y + 4)], (205, 24, 60))
    else:
        smile = [(turn - 8, mouth_y - 2), (turn + 8, mouth_y - 2), (turn + 5, mouth_y + 4), (turn - 5, mouth_y + 4)]
        pen.fill(smile, WHITE if identity["beard"] == "beard" else (150, 40, 44), outlined=True)
    if identity["beard"] == "mustache":
        half = [
            (0.0, HEAD_Y + 10.0),
            (9.0, HEAD_Y + 9.0),
            (17.0, HEAD_Y + 14.0),
            (8.0, HEAD_Y + 17.0),
            (0.0, HEAD_Y + 15.0),
        ]
        pen.fill([(turn + x, y) for x, y in half] + [(turn - x, y) for x, y in reversed(half)], hair, outlined=True)


def _eye(pen: Pen, glasses: str, x: float, y: float, side: int, hair: Color, *, woman: bool) -> None:
    if glasses == "dark":
        pen.fill(box(x - 11, y - 7, x + 11, y + 8, radius=6), INK)
        pen.stroke([(x - 6, y - 2), (x - 1, y - 5)], (180, 190, 210), 3)
        return
    if glasses == "round":
        pen.fill(oval(x, y, 10.5, 10.5), (232, 244, 252))
        pen.ring(oval(x, y, 10.5, 10.5), INK, 4)
    pen.fill(oval(x, y, 4.6, 6.0), INK)
    pen.fill(oval(x - 1.5, y - 2.3, 2, 2.2), WHITE)
    if woman:
        for rise in (-4, 0):
            pen.stroke([(x + side * 3, y + rise), (x + side * 8, y + rise - 2)], INK, 2.4)
        if glasses == NONE:
            pen.stroke([(x - 5.5, y - 9), (x, y - 11.5), (x + 5.5, y - 9)], shade(hair, 0.45), 2.4)
    elif glasses == NONE:
        pen.stroke([(x - 7, y - 9), (x + 7, y - 9)], shade(hair, 0.45), 4)


def _hat(pen: Pen, hat: str, color_name: str) -> None:
    if hat == NONE:
        return
    color = PAINT[color_name]
    low = HEAD_Y - 27
    if hat == "hat":
        pen.fill(box(-17, low - 27, 17, low, radius=3), color, outlined=True)
        pen.fill(box(-17, low - 10, 17, low - 3), shade(color, 0.5))
        pen.fill(box(-29, low - 4, 29, low + 4, radius=4), color, outlined=True)
    elif hat == "crown":
        points = [
            (-20.0, low + 4),
            (-23.0, low - 20),
            (-11.0, low - 9),
            (0.0, low - 24),
            (11.0, low - 9),
            (23.0, low - 20),
            (20.0, low + 4),
        ]
        pen.fill(points, color, outlined=True)
        pen.fill(oval(0, low - 4, 4, 4), WHITE)
    else:
        pen.fill([(-17, low + 4), (0, low - 34), (17, low + 4)], color, outlined=True)
        pen.fill([(-12, low - 7), (-8, low - 16), (8, low - 16), (12, low - 7)], WHITE)
        pen.fill(oval(0, low - 34, 6, 6), WHITE, outlined=True)
