"""Instructions to change a picture, in five kinds, each with the exact picture that should come out.

The kinds are those of OmniPBench: manipulating objects, modifying attributes, moving things, changing the
surroundings, changing the style. An edit keeps everything it does not name, down to the last pixel.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from omnifarm.errors import ConfigError
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.identity import ATTRIBUTES, NONE, Identity
from omnifarm.miniature.scene import BESIDE_SCALE, FAR, Placed, Scene, sample_item
from omnifarm.miniature.text import AT_PLACE, an, item_phrase

OPERATIONS = (
    "object_manipulation",
    "attribute_modification",
    "spatial_transformation",
    "environment_interaction",
    "style_appearance",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """One instruction and its outcome.

    Attributes:
        operation: One of `OPERATIONS`.
        instruction: What is asked.
        target: The scene as it should be afterwards.
    """

    operation: str
    instruction: str
    target: Scene


def removal_instruction(name: str, noun: str) -> str:
    """Return the removal instruction of the method: `remove <sks>: dog from the photo`."""
    return f"remove {name}: {noun} from the photo"


def removal(scene: Scene, index: int, name: str) -> Edit:
    """Return the edit that takes subject `index` away."""
    return Edit(
        operation="object_manipulation",
        instruction=removal_instruction(name, scene.subjects[index].identity.noun),
        target=scene.without(index),
    )


def idle_removal(scene: Scene, absent: Identity, name: str) -> Edit:
    """Return the edit that should change nothing: `absent` is called `name` and is not in the scene."""
    instruction = removal_instruction(name, absent.noun)
    return Edit(operation="object_manipulation", instruction=instruction, target=scene)


def sample_edit(rng: random.Random, scene: Scene, index: int, name: str, *, operation: str | None = None) -> Edit:
    """Draw an edit of subject `index`.

    Args:
        rng: Source of randomness.
        scene: The picture to change; daylight and photo style make every operation possible.
        index: Which subject the instruction names.
        name: What to call it.
        operation: One of `OPERATIONS`; random by default.

    Raises:
        ConfigError: There is no such operation.
    """
    operation = operation or rng.choice(OPERATIONS)
    if operation not in _EDITS:
        raise ConfigError(f"expected an operation among {', '.join(OPERATIONS)}, found {operation!r}")
    instruction, target = _EDITS[operation](rng, scene, index, name)
    return Edit(operation=operation, instruction=instruction, target=target)


def _manipulate(rng: random.Random, scene: Scene, index: int, name: str) -> tuple[str, Scene]:
    if len(scene.subjects) == 2 or scene.item is not None or rng.random() < 0.4:
        edit = removal(scene, index, name)
        return edit.instruction, edit.target
    item = sample_item(rng)
    side = "left" if scene.subjects[index].x > 48 else "right"
    target = replace(scene, item=item, item_side=side)
    return f"Add {item_phrase(item)} next to {name}.", target


def _modify(rng: random.Random, scene: Scene, index: int, name: str) -> tuple[str, Scene]:
    placed = scene.subjects[index]
    identity = placed.identity
    if identity.group == "person" and rng.random() < 0.35:
        phrase = f"Make {name} lower the hand." if placed.hand_raised else f"Make {name} raise a hand."
        return phrase, scene.with_subject(index, replace(placed, hand_raised=not placed.hand_raised))
    while True:
        phrase, changed = _restyle(rng, identity, name)
        # An edited inhabitant of pre-training must not become somebody that pre-training must never see.
        if changed != identity and (identity.split != "train" or changed.split == "train"):
            return phrase, scene.with_subject(index, replace(placed, identity=changed))


def _restyle(rng: random.Random, identity: Identity, name: str) -> tuple[str, Identity]:
    values = ATTRIBUTES[identity.group]
    if identity.group == "person":
        if rng.random() < 0.5:
            hat, color = rng.choice([v for v in values["hat"] if v != NONE]), rng.choice(values["hat_color"][1:])
            return f"Make {name} wear {an(f'{color} {hat}')}.", identity.replace(hat=hat, hat_color=color)
        color = rng.choice(values["shirt_color"])
        return f"Make the shirt of {name} {color}.", identity.replace(shirt_color=color)
    if identity.group == "pet":
        if rng.random() < 0.5:
            neck, color = rng.choice(values["neck"]), rng.choice(values["neck_color"])
            return f"Make {name} wear {an(f'{color} {neck}')}.", identity.replace(neck=neck, neck_color=color)
        color = rng.choice([v for v in values["coat"] if v != identity["second"]])
        return f"Make the fur of {name} {color}.", identity.replace(coat=color)
    color = rng.choice([v for v in values["color"] if v != identity["second"]])
    return f"Make {name} {color}.", identity.replace(color=color)


def _transform(rng: random.Random, scene: Scene, index: int, name: str) -> tuple[str, Scene]:
    placed = scene.subjects[index]
    choices: list[tuple[str, Placed]] = []
    if placed.identity.group != "object":
        for side in ("left", "right"):
            if placed.look != side:
                choices.append((f"Make {name} look to the {side}.", replace(placed, look=side)))
    if len(scene.subjects) == 1 and scene.item is None:
        left, right = FAR
        if placed.x >= left + 16:
            choices.append((f"Move {name} to the left.", replace(placed, x=left)))
        if placed.x <= right - 16:
            choices.append((f"Move {name} to the right.", replace(placed, x=right)))
    choices.append((f"Make {name} smaller.", replace(placed, height=placed.height * BESIDE_SCALE)))
    if placed.height < 56:
        choices.append((f"Make {name} bigger.", replace(placed, height=placed.height / BESIDE_SCALE)))
    phrase, changed = rng.choice(choices)
    return phrase, scene.with_subject(index, changed)


def _surround(rng: random.Random, scene: Scene, index: int, name: str) -> tuple[str, Scene]:
    lights = [light for light in ("sunset", "night") if light != scene.light]
    if rng.random() < 0.5:
        light = rng.choice(lights)
        phrase = "in sunset lighting" if light == "sunset" else "at night"
        return f"Make {name} appear {phrase}.", replace(scene, light=light)
    place = rng.choice([place for place in PLACES if place != scene.place])
    return f"Put {name} {AT_PLACE[place]}.", replace(scene, place=place)


def _style(rng: random.Random, scene: Scene, index: int, name: str) -> tuple[str, Scene]:
    style = rng.choice([style for style in ("sketch", "painting") if style != scene.style])
    phrase = "a pencil sketch" if style == "sketch" else "a painting"
    return f"Make {name} look like {phrase}.", replace(scene, style=style)


_EDITS: dict[str, Callable[[random.Random, Scene, int, str], tuple[str, Scene]]] = {
    "object_manipulation": _manipulate,
    "attribute_modification": _modify,
    "spatial_transformation": _transform,
    "environment_interaction": _surround,
    "style_appearance": _style,
}
