"""Draws a sitting pet in figure units (see `pen`)."""

from omnifarm.miniature.identity import Identity
from omnifarm.miniature.palette import INK, PAINT, WHITE, shade
from omnifarm.miniature.pen import Color, Pen, box, mix, oval

HEAD_Y = -62.0
_ROSE: Color = (255, 150, 170)


def draw_pet(pen: Pen, identity: Identity, *, look: float = 0.0) -> None:
    """Draw one pet.

    Args:
        pen: Where to.
        identity: Of group "pet".
        look: Where the head points, from -1 (left) over 0 (to the viewer) to 1 (right).
    """
    coat, second = PAINT[identity["coat"]], PAINT[identity["second"]]
    pen.ink = INK if identity["coat"] != "black" else (14, 10, 16)
    turn = 10.0 * look
    _tail(pen, identity.noun, coat)
    pen.cloth(oval(0, -25, 28, 28), coat, second, identity["pattern"], pitch=10.5)
    if identity["pattern"] == "plain":
        pen.fill(oval(0, -21, 15, 18), second)
    for side in (-1, 1):
        pen.fill(oval(side * 15, -4, 12, 7), coat, outlined=True)
    _ears(pen, identity, coat, behind=True)
    pen.cloth(oval(0, HEAD_Y, 33, 27), coat, second, "plain")
    _markings(pen, identity["pattern"], second)
    _ears(pen, identity, coat, behind=False)
    _muzzle(pen, identity.noun, coat, second, turn)
    for side in (-1, 1):
        x = side * 14 + turn
        pen.fill(oval(x, HEAD_Y - 3, 6.4, 7.6), WHITE)
        pen.fill(oval(x, HEAD_Y - 2.5, 4.8, 6), INK)
        pen.fill(oval(x - 1.5, HEAD_Y - 5, 2, 2.2), WHITE)
    _neck(pen, identity["neck"], PAINT[identity["neck_color"]])


def _markings(pen: Pen, pattern: str, second: Color) -> None:
    if pattern == "striped":
        for x in (-11, 0, 11):
            pen.fill(
                [(x - 4, HEAD_Y - 25 + abs(x) * 0.15), (x + 4, HEAD_Y - 25 + abs(x) * 0.15), (x, HEAD_Y - 11)], second
            )
    elif pattern == "spotted":
        pen.fill(oval(15, HEAD_Y - 5, 13, 14, turn=0.4), second)
        pen.fill(oval(-16, HEAD_Y - 16, 7, 6), second)


def _tail(pen: Pen, noun: str, coat: Color) -> None:
    if noun == "dog":
        pen.limb((24, -12), (42, -32), coat, 9)
    elif noun == "cat":
        pen.limb((22, -8), (42, -14), coat, 8)
        pen.limb((42, -14), (40, -42), coat, 8)
    elif noun == "rabbit":
        pen.fill(oval(29, -12, 10, 10), WHITE, outlined=True)
    elif noun == "pig":
        pen.ring(oval(31, -20, 6, 7), shade(coat, 0.3), 4)
    else:
        pen.fill(oval(28, -12, 8, 8), coat, outlined=True)


def _ears(pen: Pen, identity: Identity, coat: Color, *, behind: bool) -> None:
    upright = identity["ears"] == "upright"
    if behind != upright:
        return
    inner = mix(coat, _ROSE, 0.7)
    for side in (-1, 1):
        _EAR[identity.noun](pen, side, coat, inner, upright)


def _dog_ear(pen: Pen, side: int, coat: Color, inner: Color, upright: bool) -> None:
    dark = shade(coat, 0.25)
    if upright:
        pen.fill(
            [(side * 8, HEAD_Y - 20), (side * 25, HEAD_Y - 46), (side * 32, HEAD_Y - 40), (side * 33, HEAD_Y - 8)],
            dark,
            outlined=True,
        )
    else:
        pen.fill(oval(side * 34, HEAD_Y + 2, 10, 22, turn=-side * 0.2), dark, outlined=True)


def _cat_ear(pen: Pen, side: int, coat: Color, inner: Color, upright: bool) -> None:
    if upright:
        pen.fill([(side * 5, HEAD_Y - 20), (side * 29, HEAD_Y - 44), (side * 34, HEAD_Y - 6)], coat, outlined=True)
        pen.fill([(side * 13, HEAD_Y - 20), (side * 26, HEAD_Y - 34), (side * 29, HEAD_Y - 12)], inner)
    else:
        pen.fill(
            [(side * 10, HEAD_Y - 26), (side * 30, HEAD_Y - 18), (side * 46, HEAD_Y + 1), (side * 26, HEAD_Y - 4)],
            coat,
            outlined=True,
        )
        pen.fill(
            [(side * 21, HEAD_Y - 17), (side * 30, HEAD_Y - 13), (side * 40, HEAD_Y - 3), (side * 27, HEAD_Y - 7)],
            inner,
        )


def _rabbit_ear(pen: Pen, side: int, coat: Color, inner: Color, upright: bool) -> None:
    if upright:
        pen.fill(oval(side * 13, HEAD_Y - 40, 10, 27, turn=side * 0.12), coat, outlined=True)
        pen.fill(oval(side * 13, HEAD_Y - 40, 5, 19, turn=side * 0.12), inner)
    else:
        pen.fill(oval(side * 33, HEAD_Y + 12, 10, 31, turn=-side * 0.25), coat, outlined=True)
        pen.fill(oval(side * 33, HEAD_Y + 14, 5, 22, turn=-side * 0.25), inner)


def _bear_ear(pen: Pen, side: int, coat: Color, inner: Color, upright: bool) -> None:
    x, y = (side * 24, HEAD_Y - 25) if upright else (side * 33, HEAD_Y - 6)
    pen.fill(oval(x, y, 12, 12), coat, outlined=True)
    pen.fill(oval(x, y, 6, 6), inner)


def _pig_ear(pen: Pen, side: int, coat: Color, inner: Color, upright: bool) -> None:
    if upright:
        pen.fill([(side * 12, HEAD_Y - 22), (side * 26, HEAD_Y - 38), (side * 32, HEAD_Y - 10)], inner, outlined=True)
    else:
        pen.fill([(side * 8, HEAD_Y - 27), (side * 32, HEAD_Y - 27), (side * 33, HEAD_Y - 2)], inner, outlined=True)


_EAR = {"dog": _dog_ear, "cat": _cat_ear, "rabbit": _rabbit_ear, "bear": _bear_ear, "pig": _pig_ear}


def _muzzle(pen: Pen, noun: str, coat: Color, second: Color, turn: float) -> None:
    y = HEAD_Y + 12
    if noun == "dog":
        pen.fill(box(turn - 5, y + 5, turn + 5, y + 17, radius=5), _ROSE, outlined=True)
        pen.fill(oval(turn, y, 15, 11), second)
        pen.fill(oval(turn, y - 5, 7.5, 5.5), INK)
    elif noun == "cat":
        pen.fill(oval(turn, y, 12, 8), second)
        pen.fill([(turn - 5, y - 6), (turn + 5, y - 6), (turn, y + 1)], (240, 90, 120))
        ink = INK if coat != PAINT["black"] else WHITE
        for side in (-1, 1):
            for rise in (-3, 5):
                pen.stroke([(turn + side * 15, y), (turn + side * 32, y + rise)], ink, 2.2)
    elif noun == "rabbit":
        pen.fill(oval(turn, y, 12, 9), second)
        pen.fill(oval(turn, y - 5, 5, 4), (240, 90, 120))
        pen.fill(box(turn - 5, y + 2, turn + 5, y + 12), WHITE, outlined=True)
    elif noun == "bear":
        pen.fill(oval(turn, y, 18, 13), second, outlined=True)
        pen.fill(oval(turn, y - 5, 9, 6), INK)
        pen.stroke([(turn, y), (turn, y + 8)], INK, 3)
    else:
        pen.fill(oval(turn, y, 15, 10.5), mix(coat, (255, 130, 160), 0.6), outlined=True)
        for side in (-1, 1):
            pen.fill(oval(turn + side * 6, y, 3, 5), INK)


def _neck(pen: Pen, neck: str, color: Color) -> None:
    y = HEAD_Y + 27
    if neck == "collar":
        pen.fill(box(-22, y - 3, 22, y + 6, radius=4), color, outlined=True)
        pen.fill(oval(0, y + 9, 6.5, 6.5), PAINT["yellow"] if color != PAINT["yellow"] else WHITE, outlined=True)
    elif neck == "bow":
        for side in (-1, 1):
            pen.fill([(0, y + 3), (side * 19, y - 7), (side * 19, y + 13)], color, outlined=True)
        pen.fill(oval(0, y + 3, 6, 6), shade(color), outlined=True)
    else:
        pen.fill([(5, y), (17, y), (21, y + 27), (8, y + 27)], shade(color, 0.12), outlined=True)
        pen.fill(box(-25, y - 4, 25, y + 8, radius=6), color, outlined=True)
