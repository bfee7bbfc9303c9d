"""Reads a picture of the drawn world: who is on it and how they look, where, with what, in which light and style.

A small convolutional network trained on renders alone. It makes exact, named measurements possible (`world_*`); it
understands nothing else, and it is no language model.

Shape letters: B pictures, C channels, S slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from omnifarm.errors import WeightsError
from omnifarm.miniature.draw_item import FRIENDS, TOYS
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.identity import ALL_NOUNS, ATTRIBUTES, BRIGHT_COLORS, NONE, Identity, group_of
from omnifarm.miniature.scene import LIGHTS, STYLES, Item, Placed, Scene

FILE = "judge.safetensors"
"""Where a miniature's folder keeps the judge."""

SLOTS = ("alone", "left", "right")
"""Where a subject can stand: on its own, or beside another."""

SCENE_HEADS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "count": ("0", "1", "2"),
        "place": PLACES,
        "light": LIGHTS,
        "style": STYLES,
        "item": (NONE, *TOYS, *FRIENDS),
        "item_color": BRIGHT_COLORS,
    }
)
"""What is read of a picture as a whole; the item's colour only where there is an item."""

SLOT_HEADS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "noun": ALL_NOUNS,
        **{f"{group}.{name}": values for group, of in ATTRIBUTES.items() for name, values in of.items()},
        "look": ("front", "left", "right"),
        "hand": ("down", "up"),
    }
)
"""What is read of each subject; attributes only of its own group."""

_SIZES = 2  # axis and height of a subject, as fractions of the picture


@dataclass(frozen=True, kw_only=True, slots=True)
class SubjectReading:
    """One subject as the judge sees it.

    Attributes:
        noun: Its class.
        attributes: Attribute to value, all of its group.
        look: "front", "left" or "right".
        hand_raised: Whether a hand is up.
        x: Its axis in pixels from the left.
        height: What 100 figure units measure, in pixels.
    """

    noun: str
    attributes: Mapping[str, str]
    look: str
    hand_raised: bool
    x: float
    height: float

    @classmethod
    def of(cls, placed: Placed) -> "SubjectReading":
        """Return what a judge without fault would read off a subject."""
        identity = placed.identity
        return cls(
            noun=identity.noun,
            attributes=dict(zip(ATTRIBUTES[identity.group], identity.values, strict=True)),
            look=placed.look,
            hand_raised=placed.hand_raised,
            x=placed.x,
            height=placed.height,
        )

    def agreement(self, identity: Identity) -> float:
        """Return the share of an identity's attributes, its class among them, that are seen here (0..1)."""
        expected = {"noun": identity.noun, **dict(zip(ATTRIBUTES[identity.group], identity.values, strict=True))}
        seen = {"noun": self.noun, **self.attributes}
        return sum(seen.get(name) == value for name, value in expected.items()) / len(expected)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One picture as the judge sees it; subjects from left to right."""

    place: str
    light: str
    style: str
    item: Item | None
    subjects: tuple[SubjectReading, ...]

    @classmethod
    def of(cls, scene: Scene) -> "Reading":
        """Return what a judge without fault would read off a scene."""
        ordered = sorted(scene.subjects, key=lambda placed: placed.x)
        return cls(
            place=scene.place,
            light=scene.light,
            style=scene.style,
            item=scene.item,
            subjects=tuple(SubjectReading.of(placed) for placed in ordered),
        )


class JudgeNetwork(nn.Module):
    """Pixels to logits: a strided stem, residual blocks at 12 by 12, one learned spatial pooling per slot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            _Residual(64),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            _Residual(128),
            _Residual(128),
            nn.GroupNorm(8, 128),
            nn.GELU(),
        )
        self.pools = nn.Parameter(torch.zeros(1 + len(SLOTS), 128, 144))
        self.mixers = nn.ModuleList(nn.Sequential(nn.Linear(256, 192), nn.GELU()) for _ in range(1 + len(SLOTS)))
        self.scene = nn.Linear(192, sum(map(len, SCENE_HEADS.values())))
        self.slots = nn.ModuleList(nn.Linear(192, sum(map(len, SLOT_HEADS.values())) + _SIZES) for _ in SLOTS)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (B, 3, 96, 96) in [-1, 1] to scene logits (B, n) and slot logits (B, S, m + 2)."""
        features = self.stem(pixels).flatten(2)
        mean = features.mean(dim=2)
        pooled = torch.einsum("bcp,scp->sbc", features, self.pools)
        mixed = [mixer(torch.cat((rows, mean), dim=1)) for mixer, rows in zip(self.mixers, pooled, strict=True)]
        slots = torch.stack([head(rows) for head, rows in zip(self.slots, mixed[1:], strict=True)], dim=1)
        return self.scene(mixed[0]), slots


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x + body(x)."""
        out: Tensor = x + self.body(x)
        return out


class Judge:
    """Reads pictures with a trained network.

    Args:
        network: Its weights are not changed.
    """

    def __init__(self, network: JudgeNetwork) -> None:
        self._network = network.float().eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        """Load the judge of a miniature's folder.

        Raises:
            WeightsError: There is none, or it is another network's.
        """
        path = folder / FILE
        if not path.is_file():
            raise WeightsError(
                f"expected the judge of the drawn world in {path}, found nothing; it ships with the miniature"
            )
        network = JudgeNetwork()
        try:
            network.load_state_dict(load_file(str(path)))
        except RuntimeError as error:
            raise WeightsError(f"{path} does not hold this version's judge: {error}") from error
        return cls(network)

    @torch.no_grad()
    def read(self, pictures: NDArray[np.uint8]) -> list[Reading]:
        """Read pictures (B, 96, 96, 3) uint8."""
        readings: list[Reading] = []
        for first in range(0, len(pictures), 64):
            pixels = torch.tensor(pictures[first : first + 64])
            scene, slots = self._network(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
            readings += [_reading(scene[i], slots[i]) for i in range(len(scene))]
        return readings


def scene_labels(scene: Scene) -> dict[str, int]:
    """Return the class index of every scene head, -1 where it does not apply."""
    item = scene.item
    return {
        "count": len(scene.subjects),
        "place": PLACES.index(scene.place),
        "light": LIGHTS.index(scene.light),
        "style": STYLES.index(scene.style),
        "item": 0 if item is None else SCENE_HEADS["item"].index(item.kind),
        "item_color": -1 if item is None else BRIGHT_COLORS.index(item.color),
    }


def slot_labels(scene: Scene) -> tuple[list[dict[str, int]], list[tuple[float, float]]]:
    """Return per slot the class index of every head (-1 where nothing is to be read) and (axis, height) in pictures."""
    targets = [dict.fromkeys(SLOT_HEADS, -1) for _ in SLOTS]
    sizes = [(0.0, 0.0)] * len(SLOTS)
    ordered = sorted(scene.subjects, key=lambda placed: placed.x)
    for slot, placed in zip(slots_of(len(ordered)), ordered, strict=True):
        identity = placed.identity
        target = targets[slot]
        target["noun"] = ALL_NOUNS.index(identity.noun)
        for (name, values), value in zip(ATTRIBUTES[identity.group].items(), identity.values, strict=True):
            target[f"{identity.group}.{name}"] = values.index(value)
        if identity.group != "object":
            target["look"] = SLOT_HEADS["look"].index(placed.look)
        if identity.group == "person":
            target["hand"] = int(placed.hand_raised)
        sizes[slot] = (placed.x / 96, placed.height / 96)
    return targets, sizes


def slots_of(count: int) -> Sequence[int]:
    """Return the slots that `count` subjects occupy, from left to right."""
    return ((), (0,), (1, 2))[count]


@cache
def spans(which: str) -> Mapping[str, slice]:
    """Return where each head's logits lie; `which` is "scene" or "slot"."""
    found, start = {}, 0
    for name, values in (SCENE_HEADS if which == "scene" else SLOT_HEADS).items():
        found[name] = slice(start, start + len(values))
        start += len(values)
    return found


def _reading(scene: Tensor, slots: Tensor) -> Reading:
    def best(row: Tensor, which: str, name: str) -> str:
        values = (SCENE_HEADS if which == "scene" else SLOT_HEADS)[name]
        return values[int(row[spans(which)[name]].argmax())]

    kind = best(scene, "scene", "item")
    subjects = []
    for slot in slots_of(int(best(scene, "scene", "count"))):
        row = slots[slot]
        noun = best(row, "slot", "noun")
        group = group_of(noun)
        x, height = (96 * row[-_SIZES:]).tolist()
        subjects.append(
            SubjectReading(
                noun=noun,
                attributes={name: best(row, "slot", f"{group}.{name}") for name in ATTRIBUTES[group]},
                look=best(row, "slot", "look"),
                hand_raised=best(row, "slot", "hand") == "up",
                x=x,
                height=height,
            )
        )
    return Reading(
        place=best(scene, "scene", "place"),
        light=best(scene, "scene", "light"),
        style=best(scene, "scene", "style"),
        item=None if kind == NONE else Item(kind=kind, color=best(scene, "scene", "item_color")),
        subjects=tuple(subjects),
    )
