"""The personalised editing split where the data has none: instructions of five kinds about the test pictures.

Ten edits a picture, two of each kind, from templates; sources are test pictures only, because the others are learned
from. Templates that make no sense for a kind of subject (a cup that raises its hand) are not used for it.
"""

import random
from collections.abc import Mapping, Sequence

from omnifarm.bench.tasks import OPERATIONS, BenchConcept
from omnifarm.concept.datasets.held_out import HeldOutEdit
from omnifarm.seeding import derive_seed

PER_OPERATION = 2
"""Instructions of each kind about each picture."""

_ANY: Mapping[str, Sequence[str]] = {
    "object_manipulation": (
        "Remove {c} from the image.",
        "Add a red balloon next to {c}.",
        "Add a wooden chair next to {c}.",
        "Add a vase of flowers next to {c}.",
    ),
    "spatial_transformation": (
        "Show {c} from the side view.",
        "Show {c} from above.",
        "Move {c} to the left of the image.",
        "Move {c} to the right of the image.",
        "Make {c} larger.",
        "Make {c} smaller.",
    ),
    "environment_interaction": (
        "Make {c} appear in sunset lighting.",
        "Put {c} in heavy rain.",
        "Put {c} in falling snow.",
        "Change the background behind {c} to a beach.",
        "Change the background behind {c} to a library.",
    ),
    "style_appearance": (
        "Make {c} look like a pencil sketch.",
        "Render {c} as an oil painting.",
        "Turn the photo of {c} into a watercolor.",
        "Turn the photo of {c} into a cartoon.",
    ),
}
_ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "person": (
        "Make {c} raise a hand.",
        "Make {c} smile.",
        "Make {c} wear a red hat.",
        "Make {c} wear a yellow jacket.",
        "Make {c} wear sunglasses.",
    ),
    "pet": (
        "Make {c} wear a blue scarf.",
        "Make {c} wear a red hat.",
        "Change the color of {c} to white.",
        "Make {c} close its eyes.",
    ),
    "object": (
        "Change the color of {c} to blue.",
        "Change the color of {c} to gold.",
        "Make {c} look as if it were made of glass.",
        "Make {c} look old and worn.",
    ),
}


def derived_edits(concept: BenchConcept, *, seed: int) -> list[HeldOutEdit]:
    """Return edits of a concept's test pictures, `PER_OPERATION` of each of the five kinds a picture.

    Args:
        concept: Its test pictures are the sources; its photographs are what a judge compares with.
        seed: Which templates are used for which picture.
    """
    # A group the data does not name may be anything, so it gets what suits everything.
    templates = {**_ANY, "attribute_modification": _ATTRIBUTES.get(concept.spec.group, _ATTRIBUTES["object"])}
    edits = []
    for source in concept.held_out.images:
        rng = random.Random(derive_seed(seed, "edits", concept.name, source.digest))
        edits += [
            HeldOutEdit(
                source=source,
                instruction=template.format(c=concept.identifier),
                operation=operation,
                references=concept.spec.images,
            )
            for operation in OPERATIONS
            for template in rng.sample(list(templates[operation]), PER_OPERATION)
        ]
    return edits
