"""From groups of pictures to training samples: what the language model reads and what it should answer or draw.

The first segment of most samples introduces somebody the way a concept's system prompt will. Three kinds stand in
for soft tokens: `soft` (vectors per attribute value, routed to both experts exactly as concept vectors are), `text`
(a sentence) and `ref` (a photo). The vectors of `soft` live in a table that is trained along and thrown away.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from omnifarm.backbone.packing import LatentSegment, Segment, SoftSlot, TextSegment, VitSegment
from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.miniature.draw_item import FRIENDS, TOYS
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.facts import Facts, fact_sentences
from omnifarm.miniature.identity import BRIGHT_COLORS, LABELS, Identity, labels
from omnifarm.miniature.pretrain.corpus import NAME
from omnifarm.miniature.pretrain.superpositions import Superpositions
from omnifarm.miniature.text import describe
from omnifarm.miniature.tokenizer_build import IDENTIFIER, NAMES

VIT_GRID = (8, 8)
LATENT_GRID = (6, 6)
NUM_SLOTS = 16
"""Learned vectors per expert, as in the method's source."""

NUM_ALIASES = 32
"""Vectors that stand for a name in `soft` introductions."""
_NUM_FILLERS = 16
_SILENT = 0.25
_SUPERPOSED = 0.5
"""How often `soft` introductions are mixtures of the stand-ins."""

_FACT_HEADS = {
    "home": tuple(PLACES),
    "toy": tuple(TOYS),
    "toy_color": tuple(BRIGHT_COLORS),
    "friend": tuple(FRIENDS),
    "friend_color": tuple(BRIGHT_COLORS),
}


class SoftRows:
    """Where the stand-in vectors lie in their table: aliases, zeros, then one block of attribute values per expert."""

    def __init__(self) -> None:
        self.zero = NUM_ALIASES
        row = NUM_ALIASES + 1
        self.noise = tuple(range(row, row + _NUM_FILLERS))
        row += _NUM_FILLERS
        self._rows: dict[tuple[str, str, int], int] = {}
        heads = {**LABELS, **{f"fact.{name}": values for name, values in _FACT_HEADS.items()}}
        for expert in ("und", "gen"):
            for head, values in heads.items():
                for value in range(len(values)):
                    self._rows[expert, head, value] = row
                    row += 1
        self.num_rows = row

    def of_identity(self, identity: Identity, *, expert: str, told: Collection[str] | None = None) -> list[int]:
        """Return one row per attribute, of those in `told` (None: all)."""
        heads = {head: value for head, value in labels(identity).items() if value >= 0}
        return [self._rows[expert, head, value] for head, value in heads.items() if told is None or head in told]

    def of_facts(self, facts: Facts, *, expert: str) -> list[int]:
        """Return one row per part of a fact."""
        parts = {
            "home": facts.home,
            "toy": facts.toy.kind,
            "toy_color": facts.toy.color,
            "friend": facts.friend.kind,
            "friend_color": facts.friend.color,
        }
        return [self._rows[expert, f"fact.{head}", _FACT_HEADS[head].index(value)] for head, value in parts.items()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Introduction:
    """Who a sample is about.

    Attributes:
        segments: What introduces them, first in the sample.
        name: What they are called in text that is read: a token, or None for a vector.
        alias: Row of the vector that stands for the name.
    """

    segments: tuple[Segment, ...]
    name: str | None
    alias: int = 0

    @property
    def written(self) -> str:
        """What they are called in text that is to be written."""
        return self.name or IDENTIFIER


class Writer:
    """Turns sentences with `NAME` in them into text segments.

    Args:
        tokenizer: The miniature's.
    """

    def __init__(self, tokenizer: BackboneTokenizer) -> None:
        self.encode = lru_cache(maxsize=200_000)(lambda text: tuple(tokenizer.encode(text)))
        self.rows = SoftRows()
        self.superpositions = Superpositions(self.rows.num_rows)
        self._dot = self.encode(".")[0]

    def read(self, text: str, who: Introduction | None = None) -> TextSegment:
        """Return a question, caption or instruction."""
        if who is None or who.name is not None:
            return TextSegment(ids=self._ids(text, (who.name or "") if who else ""))
        ids: list[int] = []
        slots = []
        for index, piece in enumerate(text.split(NAME)):
            if index:
                slots.append(SoftSlot(offset=len(ids), row=who.alias))
                ids.append(self._dot)
            ids += self.encode(piece) if piece else ()
        return TextSegment(ids=tuple(ids), soft=tuple(slots))

    def write(self, text: str, who: Introduction | None = None) -> TextSegment:
        """Return an answer to be learned."""
        return TextSegment(ids=self._ids(text, who.written if who else ""), has_loss=True)

    def _ids(self, text: str, name: str) -> tuple[int, ...]:
        ids: list[int] = []
        for index, piece in enumerate(text.split(NAME)):
            if index:
                ids += self.encode(name)
            ids += self.encode(piece) if piece else ()
        return tuple(ids)

    def by_soft(
        self,
        rng: random.Random,
        identity: Identity,
        *,
        facts: Facts | None = None,
        told: Collection[str] | None = None,
    ) -> Introduction:
        """Introduce somebody by vectors of the attributes in `told` (None: all), laid out as a concept's system prompt is."""
        alias = rng.randrange(NUM_ALIASES)
        is_superposed = rng.random() < _SUPERPOSED
        ids, slots = [self._dot], [SoftSlot(offset=0, row=alias)]
        ids += self.encode(" is ")
        for expert in ("und", "gen"):
            if expert == "gen":
                ids += self.encode(" ")
            # What is told in words must not hang on vectors that only drawing trains: facts stand with the
            # understanding expert alone, and now and then the generation expert knows nothing.
            is_silent = expert == "gen" and rng.random() < _SILENT
            rows = [] if is_silent else self.rows.of_identity(identity, expert=expert, told=told)
            if facts is not None and expert == "und":
                rows += self.rows.of_facts(facts, expert=expert)
            rows += self._fillers(rng, NUM_SLOTS - len(rows))
            rng.shuffle(rows)
            for row in self.superpositions.add(rng, rows) if is_superposed else rows:
                slots.append(SoftSlot(offset=len(ids), row=row, expert="gen" if expert == "gen" else "und"))
                ids.append(self._dot)
        ids += self.encode(".")
        return Introduction(segments=(TextSegment(ids=tuple(ids), soft=tuple(slots)),), name=None, alias=alias)

    def _fillers(self, rng: random.Random, count: int) -> list[int]:
        # Concepts start from zero vectors and end anywhere, so the model meets both.
        return [rng.choice(self.rows.noise) for _ in range(count)] if rng.random() < 0.5 else [self.rows.zero] * count

    def by_text(self, rng: random.Random, identity: Identity, *, facts: Facts | None = None) -> Introduction:
        """Introduce somebody by a sentence, facts after it."""
        name = IDENTIFIER if rng.random() < 0.25 else rng.choice(NAMES)
        sentences = [describe(identity, name, rng=rng if rng.random() < 0.3 else None)]
        if facts is not None:
            sentences += rng.sample(told := fact_sentences(facts, name), len(told))
        return Introduction(segments=(TextSegment(ids=self._ids(" ".join(sentences), name)),), name=name)

    def by_photo(
        self,
        rng: random.Random,
        *,
        vit: Tensor | None,
        latent: Tensor | None = None,
        facts: Facts | None = None,
    ) -> Introduction:
        """Introduce somebody by a photo: `<n7> is`, then the picture; facts before it."""
        name = IDENTIFIER if rng.random() < 0.25 else rng.choice(NAMES)
        told = "" if facts is None else " ".join(fact_sentences(facts, name)) + " "
        segments: list[Segment] = [TextSegment(ids=self._ids(f"{told}{name} is", name))]
        if latent is not None:
            segments.append(LatentSegment(latents=latent, grid=LATENT_GRID))
        if vit is not None:
            segments.append(VitSegment(grid=VIT_GRID, features=vit))
        return Introduction(segments=tuple(segments), name=name)


def targets(rng: torch.Generator, latent: Tensor, *, count: int) -> list[Segment]:
    """Return noised copies of one picture, each with its own noise and time; they do not see each other."""
    return [
        LatentSegment(
            latents=latent,
            grid=LATENT_GRID,
            timestep_logit=float(torch.randn((), generator=rng)),
            noise=torch.randn(latent.shape, generator=rng),
        )
        for _ in range(count)
    ]


def flatten(parts: Sequence[Sequence[Segment]]) -> list[Segment]:
    """Return the segments of several parts, one after the other."""
    return [segment for part in parts for segment in part]
