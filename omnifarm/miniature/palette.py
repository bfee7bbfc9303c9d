"""The colours of the drawn world, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from omnifarm.miniature.pen import Color, mix

PAINT: Mapping[str, Color] = MappingProxyType(
    {
        "red": (222, 46, 52),
        "orange": (250, 140, 28),
        "yellow": (252, 214, 48),
        "green": (52, 168, 72),
        "blue": (44, 98, 222),
        "purple": (140, 62, 190),
        "pink": (250, 130, 182),
        "white": (250, 250, 248),
        "black": (44, 40, 48),
        "brown": (136, 82, 44),
        "gray": (150, 154, 164),
    }
)
SKIN: Mapping[str, Color] = MappingProxyType({"light": (255, 220, 190), "tan": (226, 168, 116), "dark": (138, 88, 58)})
INK: Color = (44, 34, 50)
WHITE: Color = (255, 255, 255)


def contrast(name: str) -> Color:
    """Return the second colour of a cloth of colour `name`: always the same, so it needs no attribute."""
    return PAINT["blue"] if name == "white" else PAINT["red"] if name == "yellow" else PAINT["white"]


def shade(color: Color, amount: float = 0.22) -> Color:
    """Return a darker tone of a colour."""
    return mix(color, (24, 16, 40), amount)
