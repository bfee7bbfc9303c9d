"""The pictures of pre-training: groups of scenes about two inhabitants, rendered once into a memory-mapped file.

A group's scenes follow from (seed, index) alone, so only pixels are stored and everything said about them is derived
again when it is needed. Knows nothing of models.

Shape letters: N groups, V views of a group.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omnifarm.miniature.edits import OPERATIONS, Edit, removal, sample_edit
from omnifarm.miniature.facts import Facts, sample_facts
from omnifarm.miniature.identity import Identity, Split, sample_identity
from omnifarm.miniature.render import SIZE, render
from omnifarm.miniature.scene import Scene, sample_scene

NAME = "<x>"
"""What instructions of a group call their subject; replaced by the name of the sample."""

FIRST, SECOND, BOTH, OTHER, FIRST_GONE, BOTH_GONE = range(6)
"""Views: A alone, A alone again, A and B, B alone, FIRST without A, BOTH without A."""
EDITED = (6, 7, 8, 9)
"""Views: after each of the group's edits."""
EDIT_SOURCES = (SECOND, SECOND, BOTH, BOTH)
"""Which view each edit starts from: with somebody beside A, only the name says who is to change."""
NUM_VIEWS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Two inhabitants and what is pictured of them.

    Attributes:
        first: A, the subject of most samples.
        second: B, half of the time of A's own class.
        facts: What is known about A.
        scenes: One per view.
        edits: The edits that lead from the views of `EDIT_SOURCES` to those of `EDITED`.
    """

    first: Identity
    second: Identity
    facts: Facts
    scenes: tuple[Scene, ...]
    edits: tuple[Edit, ...]


def make_group(seed: int, index: int, split: Split = "train") -> Group:
    """Return group `index` of a corpus: always the same for the same arguments."""
    rng = random.Random(f"{split}:{seed}:{index}")
    first = sample_identity(rng, split)
    second = _companion(rng, first, split)
    alone = [sample_scene(rng, [first]) for _ in range(2)]
    both = sample_scene(rng, [first, second])
    other = sample_scene(rng, [second])
    # Edits of A alone start from daylight photos, so that every operation is possible and visible.
    alone[1] = sample_scene(rng, [first], light="day", style="photo", item=alone[1].item or False)
    # Restyling inside the held-out side can have no outcome on that side and would look for one for ever.
    held_out = [operation for operation in OPERATIONS if operation != "attribute_modification"]
    edits = [sample_edit(rng, alone[1], 0, NAME, operation=rng.choice(OPERATIONS if split == "train" else held_out))]
    gone = removal(alone[0], 0, NAME).target
    where = both.index_of(first)
    assert where is not None
    both_gone = both.without(where)
    facts = sample_facts(rng)
    for view in EDIT_SOURCES[1:]:
        # Subjects change in more ways than surroundings do, so those edits need more examples.
        operation = rng.choices(OPERATIONS, (1, 0 if split == "heldout" else 4, 3, 1, 1))[0]
        source, index_of_first = (both, where) if view == BOTH else (alone[1], 0)
        edits.append(sample_edit(rng, source, index_of_first, NAME, operation=operation))
    scenes = (alone[0], alone[1], both, other, gone, both_gone, *(edit.target for edit in edits))
    return Group(first=first, second=second, facts=facts, scenes=scenes, edits=tuple(edits))


def render_corpus(
    path: Path, *, num_groups: int, seed: int, split: Split = "train", start: int = 0, stop: int | None = None
) -> None:
    """Render groups into `path`, an array (N, V, 96, 96, 3) of uint8 in NumPy's file format.

    Several processes may fill parts of one file; a repeat draws the same pixels.

    Args:
        path: Made at its full size when absent.
        num_groups: Groups of the whole corpus.
        seed: Of the corpus.
        split: Whose side of the identities.
        start: First group to render.
        stop: End of the groups to render; None for all.
    """
    array = _open(path, num_groups=num_groups)
    for index in range(start, num_groups if stop is None else stop):
        for view, scene in enumerate(make_group(seed, index, split).scenes):
            array[index, view] = render(scene)
    array.flush()


def load_corpus(path: Path) -> NDArray[np.uint8]:
    """Open a rendered corpus (N, V, 96, 96, 3) for reading."""
    array: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return array


def _open(path: Path, *, num_groups: int) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    shape = (num_groups, NUM_VIEWS, SIZE, SIZE, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "r+" if path.is_file() else "w+"
    opened: np.memmap[tuple[int, ...], np.dtype[np.uint8]]
    if mode == "r+":
        opened = np.lib.format.open_memmap(path, mode="r+")
    else:
        opened = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    return opened


def _companion(rng: random.Random, first: Identity, split: Split) -> Identity:
    while True:
        noun = first.noun if rng.random() < 0.5 else None
        group = first.group if rng.random() < 0.5 else None
        second = sample_identity(rng, split, noun=noun) if noun else sample_identity(rng, split, group=group)
        if second != first:
            return second
