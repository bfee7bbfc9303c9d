"""The drawn world's own judge: exact rules over what its reader sees, instead of a language model.

Possible because the miniature's concepts are drawn from a seed, so what should be said and drawn is known exactly.
The rules follow the rubrics' scales; numbers of this judge are never set beside those of a language model.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from omnifarm.bench.judges.base import EditVerdict, Verdict, least
from omnifarm.bench.tasks import BenchConcept, Item
from omnifarm.concept.images import pixel_digest
from omnifarm.errors import ConfigError
from omnifarm.miniature.benchmark import NAME, BenchmarkConcept, EditCase
from omnifarm.miniature.judge import Judge, Reading
from omnifarm.miniature.measures import KEPT, Pixels, edit_is_done, psnr, same_answer, setting_of, shows_fact
from omnifarm.miniature.render import SIZE, render
from omnifarm.miniature.text import AT_PLACE

FLOOR_DB = 15.0
"""PSNR that quality 0 stands for; quality 10 is what the codec gives an exact picture."""


class WorldJudge:
    """Grades by rules.

    Args:
        concepts: The drawn concepts, as `draw_benchmark` gave them.
        reader: Reads pictures of the world.
        round_trip: A picture through the backbone's codec and back: the best any drawing can be.
    """

    id = "world rules v1"

    def __init__(
        self, concepts: Sequence[BenchmarkConcept], reader: Judge, *, round_trip: Callable[[Pixels], Pixels]
    ) -> None:
        self._concepts = {concept.name: concept for concept in concepts}
        self._reader = reader
        self._round_trip = round_trip
        self._cases: dict[tuple[str, str], EditCase] = {}
        self._codec_db: dict[str, float] = {}
        self._readings: dict[str, Reading] = {}
        for concept in concepts:
            for case in concept.test_edits:
                asked = case.edit.instruction.replace(NAME, f"<{concept.name}>")
                self._cases[asked, pixel_digest(Image.fromarray(render(case.source)))] = case

    def grade_answer(self, concept: BenchConcept, item: Item, answer: str) -> Verdict:
        """1 for the reference's words (articles and punctuation aside), 0.5 where half of them are said."""
        if same_answer(answer, item.reference):
            return Verdict(score=1.0)
        wanted, said = _content(item.reference), _content(answer)
        return Verdict(score=0.5 if wanted and len(wanted & said) * 2 >= len(wanted) else 0.0)

    def grade_drawing(self, concept: BenchConcept, item: Item, picture: Image.Image) -> Verdict:
        """1 where the fact is seen, 0.5 for the right thing in another colour."""
        drawn = self.drawn(concept.name)
        kind = next((one.kind for one in drawn.replays if named(one.request, drawn) == item.text), None)
        if kind is None:
            raise ConfigError(f"{item.text!r} is no request of the drawn benchmark; judge it with an endpoint")
        reading = self.read(picture)
        if shows_fact(reading, kind, drawn.facts):
            return Verdict(score=1.0)
        thing = {"toy": drawn.facts.toy, "friend": drawn.facts.friend}.get(kind)
        is_other_color = thing is not None and reading.item is not None and reading.item.kind == thing.kind
        return Verdict(score=0.5 if is_other_color else 0.0)

    def grade_edit(
        self,
        concept: BenchConcept,
        item: Item,
        source: Image.Image,
        result: Image.Image,
        references: Sequence[Image.Image],
    ) -> EditVerdict:
        """Success is all or nothing; preservation and identity are shares; quality is closeness to an exact picture.

        Quality: PSNR to the nearer of source and exact target, between `FLOOR_DB` (0) and the codec's own (10); for
        naturalness over the whole picture, for artifacts over what the edit was to leave alone. So a picture that is
        good and changes nothing has quality and no consistency.
        """
        drawn = self.drawn(concept.name)
        case = self.case(item)
        reading = self.read(result)
        before, after = setting_of(case.source), setting_of(case.edit.target)
        kept = [seen == before[name] for name, seen in setting_of(reading).items() if before[name] == after[name]]
        likeness = max((one.agreement(drawn.identity) for one in reading.subjects), default=0.0)
        is_removal = len(case.edit.target.subjects) < len(case.source.subjects)
        consistency = least(
            {
                "success": 10.0 * edit_is_done(reading, case, drawn.identity),
                "preservation": 10.0 * float(np.mean(kept)),
                "identity": 10.0 * (likeness < KEPT) if is_removal else 10.0 * likeness,
            }
        )
        return EditVerdict(consistency=consistency, quality=least(self._quality(case, pixels(result))))

    def report(self) -> dict[str, Any]:
        """Nothing is spent."""
        return {"judge": self.id}

    def drawn(self, name: str) -> BenchmarkConcept:
        """Return the drawn concept of a name."""
        return self._concepts[name]

    def case(self, item: Item) -> EditCase:
        """Return what an edit is to lead to.

        Raises:
            ConfigError: The edit is not of the drawn benchmark.
        """
        found = self._cases.get((item.text, item.image.digest if item.image else ""))
        if found is None:
            raise ConfigError(f"{item.text!r} is no edit of the drawn benchmark; judge it with an endpoint")
        return found

    def read(self, picture: Image.Image) -> Reading:
        """Read one picture; each is read once, though the judge and the exact measures both ask for it."""
        digest = pixel_digest(picture)
        if digest not in self._readings:
            self._readings[digest] = self._reader.read(pixels(picture)[None])[0]
        return self._readings[digest]

    def _quality(self, case: EditCase, result: Pixels) -> dict[str, float]:
        source, target = render(case.source), render(case.edit.target)
        everywhere = np.ones(source.shape[:2], np.bool_)
        alike = (source == target).all(axis=-1)
        key = pixel_digest(Image.fromarray(target))
        if key not in self._codec_db:
            self._codec_db[key] = psnr(self._round_trip(target), target, everywhere)
        best = self._codec_db[key]

        def grade(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
            found = max(psnr(result, exact, mask) for exact in (source, target))
            return float(np.clip(10 * (found - FLOOR_DB) / (best - FLOOR_DB), 0, 10))

        # An edit of style or light leaves no pixel alone; then the whole picture counts.
        return {"naturalness": grade(everywhere), "artifacts": grade(alike if alike.any() else everywhere)}


def world_measures(
    judge: WorldJudge, concept: BenchConcept, item: Item, reply: Image.Image | str
) -> Mapping[str, float]:
    """Return the exact measures of one reply, `world_*` to 0..1.

    `world_vqa` and `world_qa`: the reference's words. `world_identity`: share of the concept's attributes that are
    read back; `world_place`: the place that is asked for. `world_parg`: the fact is seen. `world_edit`: the edit did
    what was asked and kept the identity.
    """
    drawn = judge.drawn(concept.name)
    if isinstance(reply, str):
        return {f"world_{item.task}": float(same_answer(reply, item.reference))}
    reading = judge.read(reply)
    if item.task == "edit":
        return {"world_edit": float(edit_is_done(reading, judge.case(item), drawn.identity))}
    if item.task == "parg":
        kind = next(one.kind for one in drawn.replays if named(one.request, drawn) == item.text)
        return {"world_parg": float(shows_fact(reading, kind, drawn.facts))}
    likeness = max((one.agreement(drawn.identity) for one in reading.subjects), default=0.0)
    asked = next((place for place, phrase in AT_PLACE.items() if phrase in item.text), None)
    place = {} if asked is None else {"world_place": float(reading.place == asked)}
    return {"world_identity": likeness, **place}


def replay_is_right(judge: WorldJudge, concept: BenchConcept, item: Item, prompt: str) -> bool:
    """Say whether replay made of a request what the fact makes of it."""
    drawn = judge.drawn(concept.name)
    wanted = next(one.prompt for one in drawn.replays if named(one.request, drawn) == item.text)
    return same_answer(prompt, named(wanted, drawn))


def named(text: str, concept: BenchmarkConcept) -> str:
    """Put a drawn concept's identifier where its texts say `<sks>`."""
    return text.replace(NAME, f"<{concept.name}>")


def pixels(picture: Image.Image) -> Pixels:
    """Return a picture as the world's reader takes it, (96, 96, 3)."""
    rgb = picture.convert("RGB")
    return np.array(rgb if rgb.size == (SIZE, SIZE) else rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _content(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in ("a", "an", "the", "is", "of")}
