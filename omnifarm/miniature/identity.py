"""Who can live in the drawn world: men and women, pets, objects, each a tuple of named attribute values.

An identity is discrete: two identities are the same exactly when all their attributes are. Identities are split
into `train` and `heldout` by a hash of that tuple, so no benchmark, whatever its seed, can draw somebody that
pre-training has met. This module knows neither pictures nor sentences.
"""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Literal

from omnifarm.errors import ConfigError

Split = Literal["train", "heldout"]
Group = Literal["person", "pet", "object"]

NONE = "none"
CLOTH_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
BRIGHT_COLORS = ("red", "yellow", "green", "blue", "purple", "pink")
PATTERNS = ("plain", "striped", "dotted", "checked")

NOUNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "person": ("man", "woman"),
        "pet": ("dog", "cat", "rabbit", "bear", "pig"),
        "object": ("mug", "backpack", "lamp", "vase", "car", "robot"),
    }
)
GROUPS: tuple[Group, ...] = ("person", "pet", "object")
ALL_NOUNS = tuple(noun for group in GROUPS for noun in NOUNS[group])

ATTRIBUTES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "person": {
            "skin": ("light", "tan", "dark"),
            "hair_color": ("black", "brown", "yellow", "red", "white", "blue", "pink"),
            "hair_style": ("short", "spiky", "curly", "long", "braided", "tied"),
            "glasses": (NONE, "round", "dark"),
            "beard": (NONE, "beard", "mustache"),
            "hat": (NONE, "hat", "crown", "cone"),
            "hat_color": (NONE, "red", "yellow", "green", "blue"),
            "shirt_color": CLOTH_COLORS,
            "shirt_pattern": PATTERNS,
        },
        "pet": {
            "coat": ("brown", "black", "white", "gray", "orange", "yellow", "pink", "blue"),
            "second": ("white", "black", "brown", "yellow"),
            "pattern": ("plain", "striped", "spotted"),
            "ears": ("upright", "floppy"),
            "neck": ("collar", "bow", "scarf"),
            "neck_color": BRIGHT_COLORS,
        },
        "object": {
            "color": CLOTH_COLORS,
            "second": CLOTH_COLORS,
            "pattern": PATTERNS,
            "emblem": (NONE, "star", "heart", "moon"),
        },
    }
)
"""Attribute names and values of each group, in the order of `Identity.values`."""

HAIR_STYLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"man": ("short", "spiky", "curly"), "woman": ("curly", "long", "braided", "tied")}
)

HELDOUT_SHARE = 0.15
"""Expected share of identities that pre-training never sees."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One inhabitant.

    Attributes:
        noun: Class noun, one of `ALL_NOUNS`.
        values: Attribute values in the order of `ATTRIBUTES[group]`.
    """

    noun: str
    values: tuple[str, ...]

    @property
    def group(self) -> Group:
        """The group of the noun."""
        return group_of(self.noun)

    def __getitem__(self, name: str) -> str:
        """Return the value of attribute `name`; KeyError when the group has no such attribute."""
        return self.values[_positions(self.group)[name]]

    def replace(self, **changes: str) -> "Identity":
        """Return a copy with some attribute values changed; consistency is not checked."""
        positions = _positions(self.group)
        values = list(self.values)
        for name, value in changes.items():
            values[positions[name]] = value
        return Identity(self.noun, tuple(values))

    @property
    def split(self) -> Split:
        """Which side of the pre-training split this identity is on."""
        return split_of(self)


@cache
def group_of(noun: str) -> Group:
    """Return the group a class noun belongs to.

    Raises:
        ConfigError: The world has no such class.
    """
    for group in GROUPS:
        if noun in NOUNS[group]:
            return group
    raise ConfigError(f"expected a class of the drawn world ({', '.join(ALL_NOUNS)}), found {noun!r}", noun=noun)


@cache
def _positions(group: str) -> Mapping[str, int]:
    return {name: index for index, name in enumerate(ATTRIBUTES[group])}


@lru_cache(maxsize=65536)
def split_of(identity: Identity) -> Split:
    """Return the side of an identity, a function of its attribute tuple and nothing else."""
    digest = hashlib.sha256("|".join((identity.noun, *identity.values)).encode()).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") < HELDOUT_SHARE * 2**32 else "train"


def is_consistent(identity: Identity) -> bool:
    """Say whether the values go together (men's and women's hair, a hat colour only with a hat, two colours)."""
    if identity.group == "person":
        return (
            identity["hair_style"] in HAIR_STYLES[identity.noun]
            and (identity["hat"] == NONE) == (identity["hat_color"] == NONE)
            and (identity["beard"] == NONE or identity.noun == "man")
        )
    return identity["coat" if identity.group == "pet" else "color"] != identity["second"]


def sample_identity(
    rng: random.Random, split: Split | None = "train", *, group: str | None = None, noun: str | None = None
) -> Identity:
    """Draw an identity of one side of the split.

    Args:
        rng: Source of randomness.
        split: The side; None for either.
        group: Restrict to "person", "pet" or "object"; by default each with equal chance.
        noun: Restrict to one class noun.

    Raises:
        ConfigError: There is no such side.
    """
    if split not in (None, "train", "heldout"):
        raise ConfigError(f"expected the side 'train', 'heldout' or None, found {split!r}")
    while True:
        identity = _draw(rng, noun or rng.choice(NOUNS[group or rng.choice(GROUPS)]))
        if is_consistent(identity) and (split is None or split_of(identity) == split):
            return identity


def _draw(rng: random.Random, noun: str) -> Identity:
    group = group_of(noun)
    chosen = {name: rng.choice(values) for name, values in ATTRIBUTES[group].items()}
    if group == "person":
        chosen["hair_style"] = rng.choice(HAIR_STYLES[noun])
        if noun == "woman":
            chosen["beard"] = NONE
        if rng.random() < 0.6:
            chosen["hat"] = chosen["hat_color"] = NONE
        else:
            chosen["hat"] = rng.choice(ATTRIBUTES[group]["hat"][1:])
            chosen["hat_color"] = rng.choice(ATTRIBUTES[group]["hat_color"][1:])
    return Identity(noun, tuple(chosen.values()))


def space_size(group: str) -> int:
    """Count the consistent identities of a group, both sides together."""
    values = ATTRIBUTES[group]
    if group == "person":
        shared = len(values["skin"]) * len(values["hair_color"]) * len(values["glasses"])
        shared *= len(values["shirt_color"]) * len(values["shirt_pattern"])
        shared *= 1 + (len(values["hat"]) - 1) * (len(values["hat_color"]) - 1)
        return shared * (len(HAIR_STYLES["man"]) * len(values["beard"]) + len(HAIR_STYLES["woman"]))
    if group == "pet":
        pairs = sum(first != second for first in values["coat"] for second in values["second"])
        rest = len(values["pattern"]) * len(values["ears"]) * len(values["neck"]) * len(values["neck_color"])
    else:
        pairs = len(values["color"]) * (len(values["second"]) - 1)
        rest = len(values["pattern"]) * len(values["emblem"])
    return len(NOUNS[group]) * pairs * rest


LABELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "noun": ALL_NOUNS,
        **{f"{group}.{name}": values for group in GROUPS for name, values in ATTRIBUTES[group].items()},
    }
)
"""Classification heads for a vision encoder: head name to its values."""


def labels(identity: Identity) -> dict[str, int]:
    """Return the class index of every head in `LABELS`, -1 where the head does not apply to this group."""
    group = identity.group
    found = dict.fromkeys(LABELS, -1)
    found["noun"] = ALL_NOUNS.index(identity.noun)
    for (name, values), value in zip(ATTRIBUTES[group].items(), identity.values, strict=True):
        found[f"{group}.{name}"] = values.index(value)
    return found
