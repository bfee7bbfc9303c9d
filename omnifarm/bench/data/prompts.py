"""The 25 general prompts per kind of subject that drawings are scored on, as data.

From google/dreambooth (`dataset/prompts_and_classes.txt`, CC BY 4.0), with subject and class word collapsed to one
placeholder as UnifyBench has them.
"""

from collections.abc import Mapping
from types import MappingProxyType

from omnifarm.concept.spec import PLACEHOLDER

_ANY = (
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
)
_OBJECT = (
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
)
_LIVE = (
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
)
_LOOKS = ("red", "purple", "shiny", "wet", "cube shaped")


def _prompts(own: tuple[str, ...]) -> tuple[str, ...]:
    return (
        *(f"a {PLACEHOLDER} {ending}" for ending in (*_ANY, *own)),
        *(f"a {look} {PLACEHOLDER}" for look in _LOOKS),
    )


PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"object": _prompts(_OBJECT), "live_subject": _prompts(_LIVE)}
)
"""`generation_type` of a concept to its prompts."""
