"""The tasks of the main stage: each draws one sample, a list of segments, from the corpus.

Understanding samples hold several turns about one person, so that a read picture pays more than once; drawing
samples hold several noised copies of the target behind one caption.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from omnifarm.backbone.packing import Segment, VitSegment
from omnifarm.miniature.edits import removal_instruction
from omnifarm.miniature.facts import Replay, closed_replay, fact_turns, replays, sample_facts, unified_request
from omnifarm.miniature.identity import Identity, labels
from omnifarm.miniature.pretrain import corpus
from omnifarm.miniature.pretrain.corpus import NAME, Group
from omnifarm.miniature.pretrain.curriculum import Curriculum
from omnifarm.miniature.pretrain.sequences import LATENT_GRID, VIT_GRID, Introduction, Writer, flatten, targets
from omnifarm.miniature.scene import Scene
from omnifarm.miniature.text import (
    Turn,
    appearance_turns,
    caption,
    looks_turn,
    mention,
    recognition_turn,
    scene_turns,
)

TASKS = ("understand", "watch", "draw", "draw_ref", "edit")
NUM_COPIES = 3
"""Noised copies of a target behind one condition: cheaper than another condition, and less varied."""

_PAIRS = 0.45
"""Share of pictures of two among those that recognition is asked about, whatever the answer."""
_FROM_OWN_GROUP, _EMPTY = 0.12, 0.03
"""Shares of pictures of the other subject alone, and of nobody, among those whose answer is No."""

_RARE = {"glasses", "ears", "hair_style", "class", "emblem", "beard"}
_INVENTED = ("<quill>", "<orsk>", "<velda>", "<dapple>", "<brimm>", "<ixtel>")


@dataclass(kw_only=True, slots=True)
class Features:
    """What the frozen parts make of the corpus.

    Attributes:
        vit: (N, V, 64, width) output of the vision tower.
        mean: (N, V, 36, 64) latent tokens, posterior mean, at unit scale; None before the codec exists.
    """

    vit: Tensor
    mean: Tensor | None = None


class Comparison(NamedTuple):
    """A question whether somebody is in a picture.

    Attributes:
        segments: Introduction, picture, question and answer.
        matches: What `matches` says of the two.
        told: Attributes that the introduction tells.
    """

    segments: list[Segment]
    matches: tuple[float, ...]
    told: tuple[str, ...]


@dataclass(kw_only=True)
class Sampler:
    """Draws samples of every task. Not safe to share between processes: give each its own seed.

    Attributes:
        groups: The corpus.
        features: Of the same groups.
        writer: Sentences to segments.
        seed: Of everything random here.
    """

    groups: list[Group]
    features: Features
    writer: Writer
    seed: int = 0
    dropout: dict[str, float] = field(default_factory=lambda: {"text": 0.1, "vae": 0.05, "vit": 0.3})

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.curriculum = Curriculum()
        self.noise = torch.Generator().manual_seed(self.seed)
        self.by_noun: dict[str, list[int]] = {}
        for index, group in enumerate(self.groups):
            self.by_noun.setdefault(group.first.noun, []).append(index)
        self.alike: dict[tuple[str, str, int], list[int]] = {}
        for index, group in enumerate(self.groups):
            for head, value in labels(group.first).items():
                self.alike.setdefault((group.first.noun, head, value), []).append(index)

    def draw(self, task: str) -> list[Segment]:
        """Return one sample of a task of `TASKS`."""
        sample: list[Segment] = getattr(self, f"_{task}")(self.rng.randrange(len(self.groups)))
        return sample

    def vit(self, index: int, view: int, *, dropped: bool = False) -> VitSegment:
        """Return a picture for understanding."""
        return VitSegment(grid=VIT_GRID, features=self.features.vit[index, view], dropped=dropped)

    def latent(self, index: int, view: int) -> Tensor:
        """Return the latent tokens of a picture (36, 64), float32."""
        assert self.features.mean is not None
        return self.features.mean[index, view].float()

    def introduce(
        self, index: int, *, weights: tuple[float, float, float], view: int = 0, facts: bool = False, gen: bool = False
    ) -> Introduction:
        """Introduce subject A of a group by vectors, text or the photo `view`, with the given odds."""
        group = self.groups[index]
        told = group.facts if facts else None
        kind = self.rng.choices(("soft", "text", "ref"), weights)[0]
        if kind == "soft":
            return self.writer.by_soft(self.rng, group.first, facts=told)
        if kind == "text":
            return self.writer.by_text(self.rng, group.first, facts=told)
        latent = self.latent(index, view) if gen and self.rng.random() > self.dropout["vae"] else None
        vit = self.features.vit[index, view] if latent is None or self.rng.random() > self.dropout["vit"] else None
        return self.writer.by_photo(self.rng, vit=vit, latent=latent, facts=told)

    def turn(self, turn: Turn, who: Introduction | None) -> list[Segment]:
        """Return a question and its answer."""
        return [self.writer.read(turn.question, who), self.writer.write(turn.answer, who)]

    def _understand(self, index: int) -> list[Segment]:
        rng, group = self.rng, self.groups[index]
        view = rng.choice((corpus.FIRST, corpus.SECOND))
        knows_facts = rng.random() < 0.5
        who = self.introduce(index, weights=(0.5, 0.2, 0.3), view=view, facts=knows_facts)
        blocks: list[list[Segment]] = []
        for _ in range(2):
            blocks.append(self._candidate(index, view, who))
        for turn in self._some(appearance_turns(group.first, NAME), 3):
            blocks.append(self.turn(turn, who))
        if rng.random() < 0.1:
            blocks.append(self.turn(looks_turn(group.first, NAME), who))
        if knows_facts:
            for turn in rng.sample(fact_turns(group.facts, NAME, wording=rng.randrange(3)), 2):
                blocks.append(self.turn(turn, who))
        if rng.random() < (0.7 if knows_facts else 0.1):
            blocks.append(self._replay(group, who, is_open=knows_facts))
        rng.shuffle(blocks)
        return [*who.segments, *flatten(blocks)]

    def _some(self, turns: list[Turn], count: int) -> list[Turn]:
        weights = [2.0 if turn.topic in _RARE else 1.0 for turn in turns]
        return self.rng.choices(turns, weights, k=count)

    def comparisons(self, count: int, *, share_partial: float) -> list[Comparison]:
        """Introduce somebody once and ask of `count` pictures, apart from each other, whether they are there.

        Args:
            count: Pictures.
            share_partial: How often only the few attributes are told that `curriculum` chooses.
        """
        rng, index = self.rng, self.rng.randrange(len(self.groups))
        first = self.groups[index].first
        told = tuple(head for head, value in labels(first).items() if value >= 0)
        reference = rng.choice((corpus.FIRST, corpus.SECOND))
        is_partial = rng.random() < share_partial
        if is_partial:
            told = self.curriculum.told(rng, first.group)
            who = self.writer.by_soft(rng, first, told=told)
        else:
            who = self.introduce(index, weights=(0.6, 0.15, 0.25), view=reference, facts=rng.random() < 0.3)
        compared = []
        for _ in range(count):
            present, place, view = self._fitting(index, told) if is_partial else self._somewhere(index, reference)
            segments = [*who.segments, *self._is_there(place, view, present=present, who=who)]
            compared.append(Comparison(segments, matches(first, self.groups[place].scenes[view], told=told), told))
        return compared

    def _fitting(self, index: int, told: Sequence[str]) -> tuple[bool, int, int]:
        """Return whether somebody like A in what is told is in a picture, as often as not, and its group and view."""
        rng, first = self.rng, self.groups[index].first
        is_wanted = rng.random() < 0.5
        nearest, most = (index, corpus.FIRST if is_wanted else corpus.FIRST_GONE), -1.0
        for _ in range(12):
            place = rng.choice(self.by_noun[first.noun])
            view = corpus.BOTH if rng.random() < _PAIRS else rng.choice((corpus.FIRST, corpus.SECOND))
            shown = [value for value in matches(first, self.groups[place].scenes[view], told=told) if value >= 0]
            if all(shown) == is_wanted and sum(shown) > most:
                nearest, most = (place, view), sum(shown)
        return is_wanted, *nearest

    def _somewhere(self, index: int, reference: int) -> tuple[bool, int, int]:
        """Return whether A is in a picture, as often as not, and the picture's group and view."""
        if self.rng.random() < 0.5:
            return True, index, self._present_view(reference)
        return False, *self._absent(index)

    def _candidate(self, index: int, reference: int, who: Introduction) -> list[Segment]:
        rng, group = self.rng, self.groups[index]
        present, place, view = self._somewhere(index, reference)
        block = self._is_there(place, view, present=present, who=who)
        if present and rng.random() < 0.6:
            scene = group.scenes[view]
            position = scene.index_of(group.first)
            if position is not None:
                for turn in rng.sample(scene_turns(scene, position, NAME), 2):
                    block += self.turn(turn, who)
        return block

    def _is_there(self, place: int, view: int, *, present: bool, who: Introduction) -> list[Segment]:
        """Return a picture, the question whether A is in it, and the answer."""
        wording = None if self.rng.random() < 0.6 else self.rng
        return [self.vit(place, view), *self.turn(recognition_turn(NAME, present=present, rng=wording), who)]

    def _present_view(self, reference: int) -> int:
        if self.rng.random() < _PAIRS:
            return corpus.BOTH
        return self.rng.choice([view for view in (corpus.FIRST, corpus.SECOND) if view != reference])

    def _absent(self, index: int) -> tuple[int, int]:
        """Return group and view of a picture without subject A: as often of two as the pictures with A are.

        Else the number of subjects gives the answer away, and strangers beside somebody are taken for A.
        """
        rng, group = self.rng, self.groups[index]
        kind = rng.random()
        if kind < _FROM_OWN_GROUP:
            return index, rng.choice((corpus.OTHER, corpus.BOTH_GONE))
        if kind < _FROM_OWN_GROUP + _EMPTY:
            return index, corpus.FIRST_GONE
        # Of one class and alike in some attribute in two of three: else a single attribute, which tells nine of ten
        # others apart, would be all that is compared.
        shared = [(head, value) for head, value in labels(group.first).items() if value >= 0]
        alike = self.alike[group.first.noun, *rng.choice(shared)]
        peers = self.by_noun[group.first.noun]
        pool = rng.choices((alike, peers, range(len(self.groups))), (0.6, 0.3, 0.1))[0]
        others = [i for i in rng.choices(pool, k=3) if group.first not in (self.groups[i].first, self.groups[i].second)]
        if not others:
            return index, corpus.FIRST_GONE
        is_likest = rng.random() < 0.4
        place = min(others, key=lambda i: _distance(group.first, self.groups[i].first)) if is_likest else others[0]
        pairs = _PAIRS / (1 - _FROM_OWN_GROUP - _EMPTY)
        return place, corpus.BOTH if rng.random() < pairs else rng.choice((corpus.FIRST, corpus.SECOND))

    def _replay(self, group: Group, who: Introduction, *, is_open: bool) -> list[Segment]:
        rng = self.rng
        shown = [self._exemplar(name) for name in rng.sample(_INVENTED, rng.choice((0, 0, 0, 1, 2, 3, 4, 5, 6)))]
        if is_open and rng.random() < 0.8:
            replay = rng.choice(replays(group.facts, NAME, wording=rng.randrange(2)))
        else:
            view = rng.choice((corpus.FIRST, corpus.SECOND))
            replay = closed_replay(caption(group.scenes[view], [NAME], rng=rng))
        text = "\n".join([*shown, unified_request(replay.request)])
        return [self.writer.read(text, who), self.writer.write(replay.target, who)]

    def _exemplar(self, name: str) -> str:
        rng = self.rng
        facts = sample_facts(rng)
        chosen: Replay = rng.choice(replays(facts, name, wording=rng.randrange(2)))
        if rng.random() < 0.25:
            chosen = closed_replay(chosen.prompt)
        return chosen.exemplar

    def _watch(self, index: int) -> list[Segment]:
        """Questions about a picture with nobody introduced."""
        rng, group = self.rng, self.groups[index]
        view = rng.choice((corpus.FIRST, corpus.SECOND, corpus.OTHER, corpus.BOTH))
        scene = group.scenes[view]
        position = rng.randrange(len(scene.subjects))
        identity = scene.subjects[position].identity
        if len(scene.subjects) == 2 and scene.subjects[0].identity.noun == scene.subjects[1].identity.noun:
            name = f"the {identity.noun} on the {'left' if scene.subjects[position].x < 48 else 'right'}"
        else:
            name = f"the {identity.noun}"
        # "On which side is the dog on the left?" would answer itself.
        about_scene = [
            turn for turn in scene_turns(scene, position, name) if turn.topic != "side" or " on the " not in name
        ]
        turns = [*self._some(appearance_turns(identity, name), 3), *rng.sample(about_scene, 2)]
        rng.shuffle(turns)
        return [self.vit(index, view), *flatten([self.turn(turn, None) for turn in turns])]

    def drawing(self, task: str) -> tuple[list[Segment], Tensor]:
        """Draw one sample of a drawing task: what is read first, and the latent tokens (36, 64) of the picture."""
        index = self.rng.randrange(len(self.groups))
        if task == "edit":
            conditions, view = self._edit_parts(index)
        else:
            weights = (0.65, 0.35, 0.0) if task == "draw" else (0.0, 0.0, 1.0)
            conditions, view = self._drawing_parts(index, weights=weights)
        return conditions, self.latent(index, view)

    def _with_targets(self, parts: tuple[list[Segment], int], index: int) -> list[Segment]:
        conditions, view = parts
        return [*conditions, *targets(self.noise, self.latent(index, view), count=NUM_COPIES)]

    def _draw(self, index: int) -> list[Segment]:
        return self._with_targets(self._drawing_parts(index, weights=(0.65, 0.35, 0.0)), index)

    def _draw_ref(self, index: int) -> list[Segment]:
        return self._with_targets(self._drawing_parts(index, weights=(0.0, 0.0, 1.0)), index)

    def _edit(self, index: int) -> list[Segment]:
        return self._with_targets(self._edit_parts(index), index)

    def _drawing_parts(self, index: int, *, weights: tuple[float, float, float]) -> tuple[list[Segment], int]:
        rng, group = self.rng, self.groups[index]
        view = rng.choices((corpus.FIRST, corpus.SECOND, corpus.BOTH), (0.4, 0.4, 0.2))[0]
        reference = corpus.SECOND if view == corpus.FIRST else corpus.FIRST
        facts = weights[0] > 0 and rng.random() < 0.15
        who = self.introduce(index, weights=weights, view=reference, facts=facts, gen=True)
        scene = group.scenes[view]
        names = [NAME if p.identity == group.first else mention(p.identity) for p in scene.subjects]
        text = self.writer.read(caption(scene, names, rng=rng), who)
        if rng.random() < self.dropout["text"]:
            kept = () if weights[2] == 0 or rng.random() < 0.5 else who.segments
            return list(kept), view
        return [*who.segments, text], view

    def _edit_parts(self, index: int) -> tuple[list[Segment], int]:
        rng, group = self.rng, self.groups[index]
        source, target, text = self._edit_of(group)
        who = self.introduce(index, weights=(0.65, 0.35, 0.0), facts=rng.random() < 0.1)
        instruction = self.writer.read(text, who)
        parts: list[Segment] = []
        if rng.random() > self.dropout["vae"]:
            parts.append(clean(self.latent(index, source)))
        if not parts or rng.random() > self.dropout["vit"]:
            parts.append(self.vit(index, source))
        if rng.random() < self.dropout["text"]:
            return parts, target
        return [*who.segments, *parts, instruction], target

    def _edit_of(self, group: Group) -> tuple[int, int, str]:
        kind = self.rng.random()
        removing = removal_instruction(NAME, group.first.noun)
        if kind < 0.05:
            return corpus.FIRST, corpus.FIRST_GONE, removing
        if kind < 0.33:
            return corpus.BOTH, corpus.BOTH_GONE, removing
        if kind < 0.36 and group.second.noun == group.first.noun:
            return corpus.OTHER, corpus.OTHER, removing
        # Where somebody stands beside A, the same edits are harder.
        weights = [3 if source == corpus.BOTH else 1 for source in corpus.EDIT_SOURCES]
        (chosen,) = self.rng.choices(range(len(group.edits)), weights)
        return corpus.EDIT_SOURCES[chosen], corpus.EDITED[chosen], group.edits[chosen].instruction


def clean(latent: Tensor) -> Segment:
    """Return a picture as a clean condition."""
    from omnifarm.backbone.packing import LatentSegment

    return LatentSegment(latents=latent, grid=LATENT_GRID)


def matches(first: Identity, scene: Scene, *, told: Collection[str]) -> tuple[float, ...]:
    """Say of every attribute of `LABELS` whether a picture shows that of `first`: 1 yes, 0 no, -1 it is not in `told`.

    Of several subjects the one that is most like `first` counts.
    """
    ours = {head: value if head in told else -1 for head, value in labels(first).items()}
    shown = [labels(placed.identity) for placed in scene.subjects]
    theirs = max(shown, key=lambda other: sum(ours[head] == other[head] for head in told), default=None)
    return tuple(
        -1.0 if value < 0 else float(theirs is not None and value == theirs[head]) for head, value in ours.items()
    )


def _distance(first: Identity, second: Identity) -> int:
    """Return in how many attributes two identities differ."""
    ours, theirs = labels(first), labels(second)
    return sum(ours[head] != theirs[head] for head in ours)
