"""From replies on file to values of concepts. Asks no system: a new judge or encoder scores old replies again."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from omnifarm.bench.judges.base import EditVerdict, Judge
from omnifarm.bench.judges.world import WorldJudge, replay_is_right, world_measures
from omnifarm.bench.metrics import text
from omnifarm.bench.metrics.aggregate import ConceptValue, mean_of_groups, mean_or_none
from omnifarm.bench.metrics.encoders import ClipEncoder, ImageEncoder, NotRun, TextEncoder
from omnifarm.bench.metrics.faces import FaceEncoder, score_faces
from omnifarm.bench.metrics.similarity import mean_similarity, mean_similarity_within, nearest
from omnifarm.bench.replies import Filed, ReplyFile
from omnifarm.bench.rows import Row
from omnifarm.bench.tasks import BenchConcept, Benchmark, Item, Task
from omnifarm.concept.spec import ConceptImage

Graded = TypeVar("Graded")

_ABSENT = NotRun(reason="not set up")
_WORLD_OF: Mapping[Task, Sequence[str]] = {
    "vqa": ("world_vqa",),
    "qa": ("world_qa",),
    "pure": ("world_identity", "world_place"),
    "parg": ("world_parg",),
    "edit": ("world_edit",),
}
"""What `world_measures` says of each task's replies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorers:
    """Everything that grades; what is absent says why."""

    judge: Judge | NotRun = _ABSENT
    """Grades answers, drawings and edits."""
    world: WorldJudge | None = None
    """Exact measures on the drawn world; None for photographs."""
    clip: ClipEncoder | NotRun = _ABSENT
    """CLIP-I and CLIP-T."""
    dino: ImageEncoder | NotRun = _ABSENT
    """DINO."""
    arcface: FaceEncoder | NotRun = _ABSENT
    """Face-Simi."""
    efficientnet: ImageEncoder | NotRun = _ABSENT
    """Stand-in for picture similarity."""
    dlib: FaceEncoder | NotRun = _ABSENT
    """Stand-in for faces."""
    minilm: TextEncoder | NotRun = _ABSENT
    """Stand-in for judged answers."""
    protocol: text.Protocol = "strict"
    """Arithmetic of `strict` or `compat`."""
    concurrency: int = 1
    """Replies graded at once."""

    def reasons(self) -> dict[str, str]:
        """Return column key to why it was not run."""
        needs: Sequence[tuple[object, Sequence[str]]] = (
            (self.judge, ("vqa_gpt", "qa_gpt", "parg_score", "sema_c", "qual_i", "avg", "edit_overall")),
            (self.clip, ("clip_i", "clip_t", "parg_clip_i", "clip_i_test", "clip_copy")),
            (self.dino, ("dino",)),
            (self.arcface, ("face_simi", "face_detected", "face_with_zeros")),
            (self.efficientnet, ("efficientnet_i", "efficientnet_copy", "parg_efficientnet_i")),
            (self.dlib, ("dlib_distance", "dlib_detected")),
            (self.minilm, ("vqa_minilm", "qa_minilm")),
        )
        found = {key: tool.reason for tool, keys in needs if isinstance(tool, NotRun) for key in keys}
        if self.world is None:
            worlds = ("vqa", "qa", "identity", "place", "parg", "replay", "edit")
            found |= {f"world_{name}": "only where pictures are drawn" for name in worlds}
        return found


@dataclass(kw_only=True, slots=True)
class _Concept:
    """Replies of one row about one concept, and what is made of them."""

    row: Row
    seed: int
    concept: BenchConcept
    benchmark: Benchmark
    replies: ReplyFile
    scorers: Scorers
    by_task: dict[Task, list[tuple[Item, Filed]]]
    values: list[ConceptValue] = field(default_factory=list)

    def add(self, metric: str, value: float | None, n: int, failures: int = 0) -> None:
        kept = None if value is None or math.isnan(value) or n == 0 else float(value)
        self.values.append(
            ConceptValue(
                row=self.row.key,
                seed=self.seed,
                concept=self.concept.name,
                metric=metric,
                value=kept,
                n=n if kept is not None else 0,
                failures=failures,
            )
        )

    def answered(self, task: Task) -> tuple[list[tuple[Item, Filed]], int]:
        """Return the replies there are, and how many items failed."""
        found = self.by_task.get(task, [])
        good = [(item, filed) for item, filed in found if not filed.failure]
        return good, len(found) - len(good)

    def pictures(self, pairs: Sequence[tuple[Item, Filed]]) -> list[Image.Image]:
        return [self.replies.picture(item) for item, _ in pairs]


def score_row(
    row: Row, *, seed: int, benchmark: Benchmark, replies: ReplyFile, scorers: Scorers
) -> Iterator[ConceptValue]:
    """Yield every value of every concept of one row under one seed.

    Args:
        row: Who replied.
        seed: Base seed of the replies.
        benchmark: What was asked.
        replies: What came back.
        scorers: What grades it.

    Raises:
        StoreError: A reply on file is damaged.
    """
    for concept in benchmark.concepts:
        by_task: dict[Task, list[tuple[Item, Filed]]] = {}
        for item, filed in replies.read_all(benchmark.items_of(concept.name, *row.tasks)):
            by_task.setdefault(item.task, []).append((item, filed))
        of = _Concept(
            row=row, seed=seed, concept=concept, benchmark=benchmark, replies=replies, scorers=scorers, by_task=by_task
        )
        for measure in (_answers, _similarity, _faces, _drawn_facts, _edits, _world):
            measure(of)
        yield from of.values


def score_real_images(benchmark: Benchmark, *, seed: int, scorers: Scorers) -> Iterator[ConceptValue]:
    """Yield the "Real Images" row: training photographs among themselves (compat counts each with itself too)."""
    with_self = scorers.protocol == "compat"
    for concept in benchmark.concepts:
        photos = concept.train_pictures()
        for metric, encoder in (
            ("clip_i", scorers.clip),
            ("dino", scorers.dino),
            ("efficientnet_i", scorers.efficientnet),
        ):
            if not isinstance(encoder, NotRun):
                similarity = mean_similarity_within(encoder.embed(photos), with_self=with_self)
                kept = None if math.isnan(similarity) else similarity
                yield ConceptValue(
                    row="real_images", seed=seed, concept=concept.name, metric=metric, value=kept, n=len(photos)
                )


def _answers(of: _Concept) -> None:
    scorers, judge = of.scorers, of.scorers.judge
    if "rec" in of.row.tasks:
        good, failed = of.answered("rec")
        asked = [(item.reference, "" if filed.failure else filed.text) for item, filed in of.by_task.get("rec", [])]
        if asked:
            # An item without a reply is a miss, not a missing value: leaving it out would reward silence.
            references, answers = zip(*asked, strict=True)
            rec = text.balanced_recall(references, answers, protocol=scorers.protocol)
            of.add("rec", rec, len(asked) - failed, failed)
            unparsed = [text.said(filed.text) is None for _, filed in good]
            of.add("rec_unparsed", mean_or_none(unparsed), len(good), failed)
    tasks: tuple[Literal["vqa", "qa"], ...] = ("vqa", "qa")
    for task in tasks:
        good, failed = of.answered(task)
        if not good and not failed:
            continue
        of.add(f"{task}_bleu", mean_or_none([text.bleu(i.reference, f.text) for i, f in good]), len(good), failed)
        words = [text.word_bleu(i.reference, f.text) for i, f in good]
        of.add(f"{task}_word_bleu", mean_or_none(words), len(good), failed)
        if not isinstance(scorers.minilm, NotRun) and good:
            said = scorers.minilm.embed_texts([filed.text or " " for _, filed in good])
            meant = scorers.minilm.embed_texts([item.reference or " " for item, _ in good])
            of.add(f"{task}_minilm", float((said * meant).sum(axis=1).mean()), len(good), failed)
        if not isinstance(judge, NotRun):
            verdicts = _graded(of, good, lambda pair: judge.grade_answer(of.concept, pair[0], pair[1].text))
            scores = [verdict.score for verdict in verdicts if verdict.score is not None]
            of.add(f"{task}_gpt", mean_or_none(scores), len(scores), failed + len(good) - len(scores))


def _similarity(of: _Concept) -> None:
    scorers = of.scorers
    kinds: tuple[tuple[Literal["pure", "parg"], str], ...] = (("pure", ""), ("parg", "parg_"))
    for task, prefix in kinds:
        good, failed = of.answered(task)
        if not good:
            if failed:
                of.add(f"{prefix}clip_i", None, 0, failed)
            continue
        encoders = [(name, one) for name, one in _image_encoders(scorers) if prefix == "" or name != "dino"]
        if not encoders:
            continue
        drawings, photos = of.pictures(good), of.concept.train_pictures()
        for name, encoder in encoders:
            drawn, known = encoder.embed(drawings), encoder.embed(photos)
            key = f"{prefix}{name}_i" if name != "dino" else "dino"
            of.add(key, mean_similarity(drawn, known), len(good), failed)
            if task == "pure" and name != "dino":
                of.add(f"{name}_copy", float(nearest(drawn, known).mean()), len(good), failed)
        if task == "pure" and not isinstance(scorers.clip, NotRun):
            _clip_alone(of, scorers.clip, good, drawings, failed)


def _clip_alone(
    of: _Concept, clip: ClipEncoder, good: Sequence[tuple[Item, Filed]], drawings: list[Image.Image], failed: int
) -> None:
    drawn = clip.embed(drawings)
    noun = of.concept.spec.class_noun
    texts = clip.embed_texts([item.text.replace(of.concept.identifier, noun) for item, _ in good])
    of.add("clip_t", float((drawn * texts).sum(axis=1).mean()), len(good), failed)
    if of.concept.held_out.images:
        of.add("clip_i_test", mean_similarity(drawn, clip.embed(of.concept.test_pictures())), len(good), failed)


def _image_encoders(scorers: Scorers) -> list[tuple[str, ImageEncoder]]:
    tools = (("clip", scorers.clip), ("dino", scorers.dino), ("efficientnet", scorers.efficientnet))
    return [(name, tool) for name, tool in tools if not isinstance(tool, NotRun)]


def _faces(of: _Concept) -> None:
    good, failed = of.answered("people")
    encoders = [tool for tool in (of.scorers.arcface, of.scorers.dlib) if not isinstance(tool, NotRun)]
    if not encoders or not (good or failed):
        return
    drawings, photos = of.pictures(good), of.concept.train_pictures()
    if not isinstance(of.scorers.arcface, NotRun):
        score = score_faces(of.scorers.arcface, drawings, photos)
        of.add("face_simi", score.similarity, score.num_faces, failed)
        of.add("face_detected", score.detected, len(good), failed)
        of.add("face_with_zeros", score.with_zeros, len(good), failed)
    if not isinstance(of.scorers.dlib, NotRun):
        score = score_faces(of.scorers.dlib, drawings, photos)
        of.add("dlib_distance", score.distance, score.num_faces, failed)
        of.add("dlib_detected", score.detected, len(good), failed)


def _drawn_facts(of: _Concept) -> None:
    good, failed = of.answered("parg")
    if not good and not failed:
        return
    judge = of.scorers.judge
    if not isinstance(judge, NotRun):
        verdicts = _graded(of, good, lambda pair: judge.grade_drawing(of.concept, pair[0], of.replies.picture(pair[0])))
        # Over the pictures of a request first, then over requests.
        groups: dict[str, list[float]] = {}
        for (item, _), verdict in zip(good, verdicts, strict=True):
            if verdict.score is not None:
                groups.setdefault(item.text, []).append(verdict.score)
        scored = sum(map(len, groups.values()))
        of.add("parg_score", mean_of_groups(groups), scored, failed + len(good) - scored)
    remembered = [_remembered(of.concept, item, filed) for item, filed in good if filed.trace.get("calls")]
    if remembered:
        of.add("replay_accuracy", mean_or_none(remembered), len(remembered), failed)


def _remembered(concept: BenchConcept, item: Item, filed: Filed) -> float:
    if item.reference:
        return text.bleu(item.reference, filed.trace["prompt"])
    return max((text.bleu(fact, filed.trace["answer"]) for fact in concept.spec.extra_info), default=0.0)


def _edits(of: _Concept) -> None:
    good, failed = of.answered("edit")
    judge = of.scorers.judge
    if isinstance(judge, NotRun) or (not good and not failed):
        return

    def grade(pair: tuple[Item, Filed]) -> EditVerdict:
        item = pair[0]
        source = of.benchmark.picture_of(item)
        assert source is not None
        references = [_reference(of.concept, image) for image in item.references]
        return judge.grade_edit(of.concept, item, source, of.replies.picture(item), references)

    verdicts = _graded(of, good, grade)
    kinds: Mapping[str, Callable[[EditVerdict], float | None]] = {
        "sema_c": lambda one: one.consistency.score,
        "qual_i": lambda one: one.quality.score,
        "edit_overall": _overall,
    }
    found: dict[str, float | None] = {}
    num_scored: dict[str, int] = {}
    for metric, read in kinds.items():
        groups: dict[str, list[float]] = {}
        for (item, _), verdict in zip(good, verdicts, strict=True):
            if (score := read(verdict)) is not None:
                groups.setdefault(item.operation, []).append(score)
        num_scored[metric] = scored = sum(map(len, groups.values()))
        found[metric] = mean_of_groups(groups)
        of.add(metric, found[metric], scored, failed + len(good) - scored)
    consistency, quality = found["sema_c"], found["qual_i"]
    whole = None if consistency is None or quality is None else (consistency + quality) / 2
    both = min(num_scored["sema_c"], num_scored["qual_i"])
    of.add("avg", whole, both, failed + len(good) - both)


def _reference(concept: BenchConcept, image: ConceptImage) -> Image.Image:
    is_learned = any(one.digest == image.digest for one in concept.spec.images)
    return concept.spec.open_image(image) if is_learned else concept.held_out.open_image(image)


def _overall(verdict: EditVerdict) -> float | None:
    consistency, quality = verdict.consistency.score, verdict.quality.score
    return None if consistency is None or quality is None else math.sqrt(consistency * quality)


def _world(of: _Concept) -> None:
    judge = of.scorers.world
    if judge is None:
        return
    gathered: dict[str, list[float]] = {}
    failures: dict[str, int] = {}
    for task in of.row.tasks:
        good, failed = of.answered(task)
        if task == "rec":
            continue
        if failed and not good:
            for name in _WORLD_OF.get(task, ()):
                of.add(name, None, 0, failed)
        for item, filed in good:
            reply = of.replies.picture(item) if filed.has_picture else filed.text
            # Portraits name no place and are drawn for the face measures; pure drawings speak for identity.
            if task == "people":
                continue
            for name, value in world_measures(judge, of.concept, item, reply).items():
                gathered.setdefault(name, []).append(value)
                failures[name] = failed
            if task == "parg" and filed.trace.get("calls"):
                right = replay_is_right(judge, of.concept, item, filed.trace["prompt"])
                gathered.setdefault("world_replay", []).append(float(right))
                failures["world_replay"] = failed
    for name, found in gathered.items():
        of.add(name, float(np.mean(found)), len(found), failures[name])


def _graded(
    of: _Concept,
    pairs: Sequence[tuple[Item, Filed]],
    grade: Callable[[tuple[Item, Filed]], Graded],
) -> list[Graded]:
    with ThreadPoolExecutor(of.scorers.concurrency) as pool:
        return list(pool.map(grade, pairs))
