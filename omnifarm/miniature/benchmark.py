"""Concepts to be learned and scored, drawn from one seed: held-out identities with everything a concept comes with.

Facts are never visible in the photos a concept is learned from: nobody is photographed at home, or beside the toy
or friend that the facts name. Texts name the concept `<sks>`; the writers in `benchmark_files` put the name in.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omnifarm.errors import ConfigError
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.edits import OPERATIONS, Edit, idle_removal, removal, sample_edit
from omnifarm.miniature.facts import Facts, Replay, fact_sentences, fact_turns, replays, sample_facts
from omnifarm.miniature.identity import NOUNS, Identity, sample_identity
from omnifarm.miniature.scene import Scene, sample_item, sample_scene
from omnifarm.miniature.text import (
    AT_PLACE,
    Turn,
    appearance_turns,
    caption,
    describe,
    mention,
    recognition_turn,
    scene_turns,
)
from omnifarm.seeding import derive_seed

NAME = "<sks>"
"""How the benchmark's texts name the concept."""

_NAMES = {
    "man": ("otto", "hugo", "ivan", "bruno", "felix", "leo", "anton", "emil"),
    "woman": ("mira", "lena", "nora", "zoe", "ada", "iris", "clara", "ines"),
    "pet": ("pip", "momo", "biscuit", "tofu", "waffle", "gizmo", "pepper", "mochi", "ziggy", "olive", "coco", "rolo"),
    "object": ("widget", "sunny", "bolt", "velvet", "comet", "pebble", "turbo", "nimbus", "ember", "dotty", "fizz"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkSizes:
    """How much each concept comes with."""

    train: int = 10
    """Photos to learn from."""
    test: int = 5
    """Photos held out."""
    hard_negatives: int = 8
    """Pictures of others of the class."""
    easy_negatives: int = 6
    """Pictures of anybody else."""
    edits: int = 8
    """Edit pairs to learn from."""
    edits_per_operation: int = 2
    """Edits to be scored, of each of the five operations."""
    removals: int = 4
    """Removals to be scored, all beside somebody else, every other time of the same class."""

    def __post_init__(self) -> None:
        if self.train < 2 or self.test < 1:
            raise ConfigError(f"expected at least 2 train and 1 test photos, found {self.train} and {self.test}")


FEW = BenchmarkSizes(train=4, test=1, hard_negatives=2, easy_negatives=2, edits=2, edits_per_operation=1, removals=1)
"""Something of everything, soon prepared: for runs that are not about what is learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A question about one picture, or about the concept as such.

    Attributes:
        turn: Question and answer.
        photo: Index into the concept's train or test photos; None without a picture.
    """

    turn: Turn
    photo: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EditCase:
    """A picture and what is to be done with it."""

    source: Scene
    edit: Edit


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConcept:
    """One concept: what is learned from and what is held out."""

    name: str
    identity: Identity
    facts: Facts
    train: tuple[Scene, ...]
    test: tuple[Scene, ...]
    hard_negatives: tuple[Scene, ...]
    easy_negatives: tuple[Scene, ...]
    strangers: tuple[Scene, ...]
    """Held-out pictures of others of its class: the concept is not on them."""
    train_qa: tuple[Asked, ...]
    test_vqa: tuple[Asked, ...]
    test_qa: tuple[Asked, ...]
    """Without pictures: facts in other words, and looks that no question of its data asks about."""
    replays: tuple[Replay, ...]
    """Requests to draw that lean on a fact."""
    train_edits: tuple[EditCase, ...]
    test_edits: tuple[EditCase, ...]
    test_removals: tuple[EditCase, ...]

    @property
    def info(self) -> str:
        """The appearance sentence."""
        return describe(self.identity, NAME)

    @property
    def extra_info(self) -> tuple[str, ...]:
        """The facts as sentences."""
        return fact_sentences(self.facts, NAME)

    @property
    def captions(self) -> tuple[str, ...]:
        """What each train photo shows, from the concept's side: others are mentioned by their looks."""
        return tuple(
            caption(scene, [NAME if p.identity == self.identity else mention(p.identity) for p in scene.subjects])
            for scene in self.train
        )

    @property
    def caption_elsewhere(self) -> str:
        """A request to draw that leaves nothing open."""
        index = PLACES.index(self.facts.home)
        return f"A photo of {NAME} {AT_PLACE[PLACES[(index + 3) % len(PLACES)]]}."


def draw_benchmark(
    seed: int, *, num_persons: int = 10, num_pets: int = 5, num_objects: int = 5, sizes: BenchmarkSizes | None = None
) -> tuple[BenchmarkConcept, ...]:
    """Draw a set of concepts; the same seed gives the same set, and a larger set begins with the smaller one's.

    Args:
        seed: Which concepts.
        num_persons: How many persons.
        num_pets: How many pets.
        num_objects: How many objects.
        sizes: How much each comes with.

    Raises:
        ConfigError: A number is negative.
    """
    numbers = {"person": num_persons, "pet": num_pets, "object": num_objects}
    if min(numbers.values()) < 0:
        raise ConfigError(f"expected numbers of concepts of 0 or more, found {numbers}", **numbers)
    chosen: list[BenchmarkConcept] = []
    for group, number in numbers.items():
        taken: set[Identity] = set()
        first = random.Random(derive_seed(seed, "benchmark", group)).randrange(100)
        for index in range(number):
            rng = random.Random(derive_seed(seed, "benchmark", group, index))
            noun = NOUNS[group][(first + index) % len(NOUNS[group])]
            identity = sample_identity(rng, "heldout", noun=noun)
            while identity in taken:
                identity = sample_identity(rng, "heldout", noun=noun)
            taken.add(identity)
            name = _name(identity, first, {concept.name for concept in chosen})
            chosen.append(draw_concept(rng, identity, name, sizes=sizes))
    return tuple(chosen)


def draw_concept(
    rng: random.Random, identity: Identity, name: str, *, sizes: BenchmarkSizes | None = None
) -> BenchmarkConcept:
    """Draw everything about one concept."""
    sizes = sizes or BenchmarkSizes()
    facts = sample_facts(rng)
    camera = _Camera(rng, identity, facts)
    train, test = camera.photos(sizes.train), camera.photos(sizes.test)
    looks = appearance_turns(identity, NAME)
    unasked = rng.sample(looks[1:], 2)
    return BenchmarkConcept(
        name=name,
        identity=identity,
        facts=facts,
        train=train,
        test=test,
        hard_negatives=camera.others(sizes.hard_negatives, noun=identity.noun),
        easy_negatives=camera.others(sizes.easy_negatives),
        strangers=camera.others(sizes.test, noun=identity.noun),
        train_qa=(
            *(Asked(turn=turn) for wording in (0, 1) for turn in fact_turns(facts, NAME, wording=wording)),
            *(Asked(turn=turn) for turn in looks if turn not in unasked),
            *_about_photos(rng, train, identity, looks=[turn for turn in looks if turn not in unasked], each=2),
        ),
        test_vqa=_about_photos(rng, test, identity, looks=looks, each=3),
        test_qa=tuple(Asked(turn=turn) for turn in (*fact_turns(facts, NAME, wording=2), *unasked)),
        replays=(*replays(facts, NAME), *replays(facts, NAME, wording=1)),
        train_edits=camera.train_edits(sizes.edits),
        test_edits=tuple(
            _edit_case(rng, test[(i + k) % len(test)], identity, operation)
            for k, operation in enumerate(OPERATIONS)
            for i in range(sizes.edits_per_operation)
        ),
        test_removals=camera.removals(sizes.removals),
    )


def write_concept_folders(
    root: Path,
    *,
    seed: int = 0,
    num_persons: int = 2,
    num_pets: int = 2,
    num_objects: int = 2,
    sizes: BenchmarkSizes | None = None,
) -> list[str]:
    """Draw concepts and write one ordinary concept folder each, with a `trials.json` of what to try on it.

    Args:
        root: Where the folders go; must be empty or absent.
        seed: Which concepts.
        num_persons: How many persons.
        num_pets: How many pets.
        num_objects: How many objects.
        sizes: How much each comes with.

    Returns:
        The concepts' names, which are the folders' names.

    Raises:
        ConfigError: `root` holds something already: mixing two sets would mix their pictures.
    """
    from omnifarm.miniature.benchmark_files import write_plain

    concepts = draw_benchmark(seed, num_persons=num_persons, num_pets=num_pets, num_objects=num_objects, sizes=sizes)
    write_plain(root, concepts)
    return [concept.name for concept in concepts]


class _Camera:
    """Takes the pictures of one concept."""

    def __init__(self, rng: random.Random, identity: Identity, facts: Facts) -> None:
        self._rng, self._identity, self._facts = rng, identity, facts
        self._places = [place for place in PLACES if place != facts.home]

    def photos(self, number: int) -> tuple[Scene, ...]:
        """Photos that show the concept, about a third of them with somebody else."""
        return tuple(self._photo(with_other=i % 3 == 2) for i in range(number))

    def others(self, number: int, *, noun: str | None = None) -> tuple[Scene, ...]:
        """Photos of others: alone, now and then in pairs."""
        return tuple(
            self._scene([self._other(noun=noun)] + ([self._other()] if self._rng.random() < 0.2 else []))
            for _ in range(number)
        )

    def train_edits(self, number: int) -> tuple[EditCase, ...]:
        """Removals from pairs and alone; the last fourth name the concept where it is not and change nothing."""
        cases = []
        for i in range(number):
            if i >= number - number // 4:
                scene = self._scene([self._other(noun=self._identity.noun)])
                cases.append(EditCase(source=scene, edit=idle_removal(scene, self._identity, NAME)))
                continue
            scene = self._photo(with_other=i % 2 == 0)
            index = scene.index_of(self._identity)
            assert index is not None
            cases.append(EditCase(source=scene, edit=removal(scene, index, NAME)))
        return tuple(cases)

    def removals(self, number: int) -> tuple[EditCase, ...]:
        """Removals from pairs; every other pair is of one class, so that the name alone says who has to go."""
        cases = []
        for i in range(number):
            other = self._other(noun=self._identity.noun if i % 2 else None)
            scene = replace(self._scene([self._identity, other]), light="day")
            index = scene.index_of(self._identity)
            assert index is not None
            cases.append(EditCase(source=scene, edit=removal(scene, index, NAME)))
        return tuple(cases)

    def _photo(self, *, with_other: bool) -> Scene:
        return self._scene([self._identity, self._other()] if with_other else [self._identity])

    def _other(self, *, noun: str | None = None) -> Identity:
        while True:
            other = sample_identity(self._rng, "heldout", noun=noun)
            if other != self._identity and (noun is not None or other.noun != self._identity.noun):
                return other

    def _scene(self, subjects: Sequence[Identity]) -> Scene:
        item = None
        while len(subjects) == 1 and item is None and self._rng.random() < 0.2:
            item = sample_item(self._rng)
            if item.kind in (self._facts.toy.kind, self._facts.friend.kind):
                item = None
        light = self._rng.choices(("day", "sunset", "night"), (0.8, 0.1, 0.1))[0]
        place = self._rng.choice(self._places)
        return sample_scene(self._rng, subjects, place=place, item=item or False, light=light, style="photo")


def _about_photos(
    rng: random.Random, photos: Sequence[Scene], identity: Identity, *, looks: Sequence[Turn], each: int
) -> tuple[Asked, ...]:
    asked = []
    for photo, scene in enumerate(photos):
        index = scene.index_of(identity)
        assert index is not None
        seen = [turn for turn in scene_turns(scene, index, NAME) if turn.topic != "style"]
        turns = [seen[0], *rng.sample([*looks, *seen[1:]], each - 1)]
        asked += [Asked(turn=turn, photo=photo) for turn in turns]
    return tuple(asked)


def _edit_case(rng: random.Random, scene: Scene, identity: Identity, operation: str) -> EditCase:
    # Daylight, so that every change of the surroundings is a change.
    scene = replace(scene, light="day")
    index = scene.index_of(identity)
    assert index is not None
    return EditCase(source=scene, edit=sample_edit(rng, scene, index, NAME, operation=operation))


def recognition_cases(concept: BenchmarkConcept) -> tuple[tuple[Scene, Turn], ...]:
    """Return the held-out recognition test: every test photo, and as many of others of the class."""
    present = [(scene, recognition_turn(NAME, present=True)) for scene in concept.test]
    return (*present, *((scene, recognition_turn(NAME, present=False)) for scene in concept.strangers))


def _name(identity: Identity, start: int, taken: set[str]) -> str:
    """Return a free name that suits, counting on from `start`; a figure is appended when the list is used up."""
    names = _NAMES.get(identity.noun) or _NAMES[identity.group]
    for number in itertools.count():
        name = names[(start + number) % len(names)] + (str(number // len(names) + 1) if number >= len(names) else "")
        if name not in taken:
            return name
    raise AssertionError("unreachable")
