"""What a system knows, draws and edits about a concept of the drawn world, in exact numbers (`world_*`).

A system is anything that answers, draws and edits; the judge reads its pictures, and what should be on them is known
exactly. Knows no model.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omnifarm.miniature.benchmark import NAME, BenchmarkConcept, EditCase, recognition_cases
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.edits import OPERATIONS
from omnifarm.miniature.facts import FACT_KINDS, Facts
from omnifarm.miniature.identity import Identity
from omnifarm.miniature.judge import Judge, Reading, SubjectReading
from omnifarm.miniature.render import render, subject_mask
from omnifarm.miniature.scene import Placed, Scene
from omnifarm.miniature.text import AT_PLACE

Pixels = NDArray[np.uint8]
"""(96, 96, 3)."""

KEPT = 0.7
"""Share of an identity's attributes that must be seen for it to count as kept by an edit or left by a removal."""

NUM_PLACES = 4
"""Drawings per concept from which identity and place are read."""


class System(Protocol):
    """What is measured. Texts name the concept `<sks>`."""

    def ask(self, question: str, picture: Pixels | None) -> str:
        """Answer a question."""

    def draw(self, prompt: str, *, replay: bool, seed: int) -> Pixels:
        """Draw a picture."""

    def edit(self, picture: Pixels, instruction: str, *, seed: int) -> Pixels:
        """Change a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Values of one concept: metric to its mean, and the pictures made on the way."""

    values: dict[str, float]
    pictures: dict[str, list[Pixels]]


def measure_answers(concept: BenchmarkConcept, system: System) -> dict[str, float]:
    """Return `rec` (balanced), `vqa`, `qa_facts` and `qa_untaught`, each the share of right answers (0..1)."""
    by_truth: dict[bool, list[bool]] = {True: [], False: []}
    for scene, turn in recognition_cases(concept):
        expected = turn.answer.startswith("Yes")
        by_truth[expected].append(system.ask(turn.question, render(scene)).startswith("Yes") == expected)
    vqa = [
        same_answer(system.ask(asked.turn.question, render(concept.test[asked.photo])), asked.turn.answer)
        for asked in concept.test_vqa
        if asked.photo is not None
    ]
    told: dict[bool, list[bool]] = {True: [], False: []}
    for asked in concept.test_qa:
        told[asked.turn.topic in FACT_KINDS].append(
            same_answer(system.ask(asked.turn.question, None), asked.turn.answer)
        )
    return {
        "rec": (_mean(by_truth[True]) + _mean(by_truth[False])) / 2,
        "vqa": _mean(vqa),
        "qa_facts": _mean(told[True]),
        "qa_untaught": _mean(told[False]),
    }


def measure_drawings(concept: BenchmarkConcept, system: System, judge: Judge) -> Measured:
    """Return `gen_identity` (mean share of attributes read back) and `gen_place` over pictures in named places."""
    away = random.Random(concept.name).sample([place for place in PLACES if place != concept.facts.home], NUM_PLACES)
    drawn = [system.draw(f"A photo of {NAME} {AT_PLACE[place]}.", replay=False, seed=i) for i, place in enumerate(away)]
    readings = judge.read(np.stack(drawn))
    values = {
        "gen_identity": _mean([_best(reading, concept.identity) for reading in readings]),
        "gen_place": _mean([reading.place == place for reading, place in zip(readings, away, strict=True)]),
    }
    return Measured(values=values, pictures={"drawn": drawn})


def measure_replay(concept: BenchmarkConcept, system: System, judge: Judge, *, replays: bool = True) -> Measured:
    """Return `parg_replay` and `parg_no_replay`: how often the fact that a request leans on is drawn.

    Without `replays`, for systems that cannot replay, the first is left out.
    """
    values: dict[str, float] = {}
    pictures: dict[str, list[Pixels]] = {}
    for name, replay in (("parg_replay", True), ("parg_no_replay", False))[0 if replays else 1 :]:
        drawn = [system.draw(one.request, replay=replay, seed=i) for i, one in enumerate(concept.replays)]
        readings = judge.read(np.stack(drawn))
        values[name] = _mean(
            [shows_fact(r, one.kind, concept.facts) for r, one in zip(readings, concept.replays, strict=True)]
        )
        pictures[name] = drawn
    return Measured(values=values, pictures=pictures)


def measure_removals(
    concept: BenchmarkConcept, system: System, judge: Judge, *, round_trip: Callable[[Pixels], Pixels]
) -> Measured:
    """Return `removal_right` and `removal_psnr_gap_db` over scenes with somebody else.

    Right means: one subject is left, it is the other as far as an edit must keep somebody, and it looks more like the
    other than like the concept. The gap is the codec's own PSNR outside the subject's mask minus that of the result,
    both against the exact target, and no removal counts as better than the codec: one that changes nothing, which keeps
    all pixels, would otherwise make up for many bad ones.
    """
    right, gaps, pictures = [], [], []
    for seed, case in enumerate(concept.test_removals):
        source, target = render(case.source), render(case.edit.target)
        result = system.edit(source, case.edit.instruction, seed=seed)
        reading = judge.read(result[None])[0]
        other = case.edit.target.subjects[0].identity
        left = reading.subjects[0] if len(reading.subjects) == 1 else None
        kept = 0.0 if left is None else left.agreement(other)
        right.append(left is not None and kept >= KEPT and kept > left.agreement(concept.identity))
        index = case.source.index_of(concept.identity)
        assert index is not None
        outside = ~subject_mask(case.source, index)
        gaps.append(max(0.0, psnr(round_trip(target), target, outside) - psnr(result, target, outside)))
        pictures += [source, result]
    values = {"removal_right": _mean(right), "removal_psnr_gap_db": float(np.mean(gaps))}
    return Measured(values=values, pictures={"removal": pictures})


def measure_edits(concept: BenchmarkConcept, system: System, judge: Judge) -> Measured:
    """Return `edit_OPERATION`: the share of edits that did what was asked and kept the identity."""
    done: dict[str, list[bool]] = {operation: [] for operation in OPERATIONS}
    pictures = []
    for seed, case in enumerate(concept.test_edits):
        source = render(case.source)
        result = system.edit(source, case.edit.instruction, seed=seed)
        done[case.edit.operation].append(edit_is_done(judge.read(result[None])[0], case, concept.identity))
        pictures += [source, result]
    values = {f"edit_{operation}": _mean(results) for operation, results in done.items() if results}
    return Measured(values=values, pictures={"edit": pictures})


def edit_is_done(reading: Reading, case: EditCase, identity: Identity) -> bool:
    """Say whether everything that differs between source and target reads as in the target, identity kept."""
    source, target = case.source, case.edit.target
    before, after = setting_of(source), setting_of(target)
    seen = setting_of(reading)
    if any(before[name] != after[name] and seen[name] != after[name] for name in before):
        return False
    index = source.index_of(identity)
    assert index is not None
    if len(target.subjects) < len(source.subjects):
        return all(subject.agreement(identity) < KEPT for subject in reading.subjects)
    wanted, given = target.subjects[index], source.subjects[index]
    found = max(reading.subjects, key=lambda subject: subject.agreement(wanted.identity), default=None)
    if found is None or found.agreement(wanted.identity) < KEPT:
        return False
    return _is_changed(found, given, wanted)


def psnr(picture: Pixels, truth: Pixels, mask: NDArray[np.bool_]) -> float:
    """Return the peak signal-to-noise ratio in dB over the pixels of `mask`, at most 60."""
    error = (picture[mask].astype(np.float64) - truth[mask]) / 255
    return float(-10 * np.log10(max(np.square(error).mean(), 1e-6)))


def codec_subject_error(
    concepts: Sequence[BenchmarkConcept], *, round_trip: Callable[[Pixels], Pixels]
) -> tuple[float, int]:
    """Return the codec's squared error summed over the subject pixels of all test photos, and how many numbers that is.

    Sums of several shares of a benchmark add up; `psnr_of` says what they are in dB.
    """
    errors = []
    for concept in concepts:
        for scene in concept.test:
            index = scene.index_of(concept.identity)
            assert index is not None
            mask, truth = subject_mask(scene, index), render(scene)
            errors.append((round_trip(truth)[mask].astype(np.float64) - truth[mask]) / 255)
    together = np.square(np.concatenate(errors))
    return float(together.sum()), together.size


def psnr_of(errors: Sequence[tuple[float, int]]) -> float:
    """Return the peak signal-to-noise ratio in dB of several sums of squared errors (of values in 0..1)."""
    return float(-10 * np.log10(sum(error for error, _ in errors) / sum(size for _, size in errors)))


def same_answer(given: str, expected: str) -> bool:
    """Compare two answers word by word; case, punctuation and articles do not count."""
    return _words(given) == _words(expected)


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9<>]+", text.lower()) if word not in ("a", "an", "the")]


def _best(reading: Reading, identity: Identity) -> float:
    return max((subject.agreement(identity) for subject in reading.subjects), default=0.0)


def shows_fact(reading: Reading, kind: str, facts: Facts) -> bool:
    """Say whether a picture shows the fact of one of `FACT_KINDS`."""
    if kind == "home":
        return reading.place == facts.home
    return reading.item == (facts.toy if kind == "toy" else facts.friend)


def setting_of(scene: Scene | Reading) -> dict[str, object]:
    """Return what a scene, or a reading of it, shows besides how its subjects look and stand."""
    return {
        "place": scene.place,
        "light": scene.light,
        "style": scene.style,
        "item": scene.item,
        "count": len(scene.subjects),
    }


def _is_changed(found: SubjectReading, given: Placed, wanted: Placed) -> bool:
    """Say whether what an edit changes about a subject is changed: discrete values read exactly, sizes more than half."""
    for name, before, after in (
        ("look", given.look, wanted.look),
        ("hand_raised", given.hand_raised, wanted.hand_raised),
    ):
        if before != after and getattr(found, name) != after:
            return False
    for name, value in found.attributes.items():
        if given.identity[name] != wanted.identity[name] and value != wanted.identity[name]:
            return False
    for seen, start, goal in ((found.x, given.x, wanted.x), (found.height, given.height, wanted.height)):
        if start != goal and abs(seen - goal) >= abs(seen - start):
            return False
    return True


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
