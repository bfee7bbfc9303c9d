"""What is in a picture: a place, one or two subjects, perhaps a small thing or a friend, light and style.

A scene is data. `render` draws it; edits replace fields of it and so have exact targets.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from omnifarm.errors import ConfigError
from omnifarm.miniature.draw_item import FRIENDS, TOYS
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.identity import BRIGHT_COLORS, NONE, Identity

LIGHTS = ("day", "sunset", "night")
STYLES = ("photo", "sketch", "painting")
SIDES = ("left", "right")

NUM_VIEWS = 1 << 20
"""How many views a place has."""

# Where and how large subjects stand comes in steps of the codec's 8 pixels and in two sizes: a small model then learns
# parts of pictures instead of all their shifted copies.
_ALONE = (40.0, 48.0, 56.0)
_BESIDE_ITEM = {"left": 56.0, "right": 40.0}
FAR = (24.0, 72.0)
"""Where two subjects stand, and where a subject goes that moves to the left or to the right."""
BESIDE_SCALE = 0.78
"""Size of two subjects beside one another, and of one that becomes smaller, against a subject alone."""
_HEIGHTS = {"person": (72.0, 79.0), "pet": (66.0, 75.0), "object": (66.0, 75.0)}
_FEET = {"person": 98.0, "pet": 92.0, "object": 92.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A small thing or friend: one of `TOYS` or `FRIENDS` in a bright colour."""

    kind: str
    color: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A subject in a scene.

    Attributes:
        identity: Who.
        x: Its axis, in pixels from the left.
        y: Its feet, in pixels from the top.
        height: What 100 figure units measure, in pixels.
        look: "front", "left" or "right": where it faces.
        mirrored: Whether the figure is reversed.
        hand_raised: Whether a person's hand is up.
    """

    identity: Identity
    x: float
    y: float
    height: float
    look: str = "front"
    mirrored: bool = False
    hand_raised: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A whole picture."""

    place: str
    view: int
    subjects: tuple[Placed, ...]
    item: Item | None = None
    item_side: str = "right"
    light: str = "day"
    style: str = "photo"

    def without(self, index: int) -> "Scene":
        """Return the scene as it is when subject `index` has left; nothing else changes."""
        return replace(self, subjects=self.subjects[:index] + self.subjects[index + 1 :])

    def with_subject(self, index: int, placed: Placed) -> "Scene":
        """Return the scene with subject `index` replaced."""
        return replace(self, subjects=(*self.subjects[:index], placed, *self.subjects[index + 1 :]))

    def index_of(self, identity: Identity) -> int | None:
        """Return the position of an identity among the subjects, None when it is not in the picture."""
        return next((i for i, placed in enumerate(self.subjects) if placed.identity == identity), None)


def sample_item(rng: random.Random, *, friend: bool | None = None) -> Item:
    """Draw a thing, or a friend; by default either."""
    if friend is None:
        friend = rng.random() < 0.35
    return Item(kind=rng.choice(FRIENDS if friend else TOYS), color=rng.choice(BRIGHT_COLORS))


def sample_scene(
    rng: random.Random,
    subjects: Sequence[Identity],
    *,
    place: str | None = None,
    item: Item | bool | None = None,
    light: str | None = None,
    style: str | None = None,
    plain_pose: bool = False,
) -> Scene:
    """Draw a scene with given subjects, large in the frame.

    Args:
        rng: Source of randomness.
        subjects: None, one or two identities, from left to right in random order.
        place: One of `PLACES`; random by default.
        item: A given item, True for a random one, False for none; by default now and then.
        light: One of `LIGHTS`; by default mostly day.
        style: One of `STYLES`; by default mostly photo.
        plain_pose: Keep everybody facing the viewer with the hands down.

    Raises:
        ConfigError: More than two subjects.
    """
    if len(subjects) > 2:
        raise ConfigError(f"expected at most two subjects in a scene, found {len(subjects)}", found=len(subjects))
    if item is None:
        item = rng.random() < (0.3 if len(subjects) < 2 else 0.0)
    if item is True:
        item = sample_item(rng)
    side = rng.choice(SIDES)
    return Scene(
        place=place or rng.choice(PLACES),
        view=rng.randrange(NUM_VIEWS),
        subjects=_stand(rng, subjects, side if item else None, plain_pose),
        item=item or None,
        item_side=side,
        light=light or rng.choices(LIGHTS, (0.84, 0.08, 0.08))[0],
        style=style or rng.choices(STYLES, (0.88, 0.06, 0.06))[0],
    )


def _stand(
    rng: random.Random, subjects: Sequence[Identity], item_side: str | None, plain_pose: bool
) -> tuple[Placed, ...]:
    order = list(subjects)
    rng.shuffle(order)
    if len(order) == 2:
        places = [(x, BESIDE_SCALE) for x in FAR]
    else:
        places = [(_BESIDE_ITEM[item_side] if item_side else rng.choice(_ALONE), 1.0)] * len(order)
    return tuple(
        place_subject(rng, who, x=x, scale=scale, plain_pose=plain_pose)
        for who, (x, scale) in zip(order, places, strict=True)
    )


def place_subject(
    rng: random.Random, identity: Identity, *, x: float, scale: float = 1.0, plain_pose: bool = False
) -> Placed:
    """Stand a subject at `x`; `scale` 1 is the usual size for somebody alone in the picture."""
    person = identity.group == "person"
    height = rng.choice(_HEIGHTS[identity.group])
    if person and identity["hat"] != NONE:
        height *= 0.93
    elif identity.noun == "rabbit":
        height *= 0.9
    height *= scale
    reach = height * (0.36 if person else 0.44)
    look = "front" if plain_pose else rng.choices(("front", "left", "right"), (0.6, 0.2, 0.2))[0]
    return Placed(
        identity=identity,
        x=min(96 - reach, max(reach, x)),
        y=_FEET[identity.group],
        height=height,
        look=look if identity.group != "object" else "front",
        mirrored=rng.random() < 0.5 and not plain_pose,
        hand_raised=person and not plain_pose and rng.random() < 0.25,
    )
