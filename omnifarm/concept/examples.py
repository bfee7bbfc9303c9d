"""What one concept is taught, as plain descriptions: texts and pictures, no tensors.

An example says which pictures and texts belong together; `samples.py` makes it a sequence. `ExampleSampler` hands
them out: the samples of a step depend on the step, the recipe, the concept and what the backbone said of its looks
alone, so a step number is the whole data cursor. Every pool is walked in shuffled rounds, so nothing is forgotten and
nothing repeated early.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from omnifarm.concept.recipe import TASKS, Task, TrainingRecipe
from omnifarm.concept.self_description import Looks
from omnifarm.concept.spec import ConceptImage, ConceptSpec
from omnifarm.concept.templates import GENERAL, USUAL_QUESTION, RecognitionTemplate, Templates, generated_questions
from omnifarm.errors import ConceptError
from omnifarm.seeding import generator

Item = TypeVar("Item")

Kind = Literal["recognition_yes", "recognition_no", "vqa", "text", "caption", "edit"]
"""What an example teaches within its task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One thing to learn."""

    task: Task
    """Which loss and layout."""
    kind: Kind
    """What it teaches."""
    prompt: str
    """Question, caption or instruction; names the concept by identifier."""
    answer: str = ""
    """What to say (understanding)."""
    image: ConceptImage | None = None
    """The picture looked at (understanding) or changed (editing)."""
    target: ConceptImage | None = None
    """The picture to draw (generation, editing)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """A picture to ask about; `pair` is a question and answer that came with the data."""

    image: ConceptImage
    pair: tuple[str, str] | None = None


class ExampleSampler:
    """The examples of one concept, step by step.

    Args:
        spec: The concept.
        recipe: Batch size, shares of the tasks and seed.
        templates: Sentences in the backbone's style.
        looks: Questions without a picture, and answers, besides the concept's own.

    Raises:
        ConceptError: Nothing can be learned under this recipe (a task has all the weight and no data).
    """

    def __init__(
        self,
        spec: ConceptSpec,
        *,
        recipe: TrainingRecipe,
        templates: Templates = GENERAL,
        looks: Looks = (),
    ) -> None:
        self.spec = spec
        self._recipe = recipe
        self._templates = templates
        self._present, self._absent = _recognition_pools(spec)
        self._vqa = [qa for qa in spec.qa if qa.kind == "vqa" and qa.image is not None]
        self._text = [*text_questions(spec), *looks]
        asked = Counter(qa.image.digest for qa in self._vqa if qa.image is not None)
        photos = {one.image.digest for one in self._present}
        # A picture that is read for one question is read for both. Only where every photo has as many questions: a photo
        # with more of them would be recognised more often, too.
        self._pairs_questions = photos <= asked.keys() and len({asked[digest] for digest in photos}) == 1
        # The order is the order of the turns; balanced, whatever their sizes.
        self._understanding = [
            name
            for name, pool in (
                ("recognition", can_ask_recognition(spec)),
                ("vqa", self._vqa),
                ("text", self._text),
            )
            if pool
        ]
        self._has: dict[Task, bool] = {
            "understanding": bool(self._understanding),
            "generation": True,
            "editing": bool(spec.edits),
        }
        self._shares = _shares_of(recipe, has=self._has, name=spec.name)
        self._counts: list[dict[Task, int]] = [dict.fromkeys(TASKS, 0)]

    def draw(self, step: int, *, seed: int | None = None) -> list[Example]:
        """Return the examples of optimizer step `step` (0-based), tasks in order.

        Tasks without data give their share to the others, in proportion.

        Args:
            step: Counted from 0.
            seed: Instead of the recipe's.
        """
        seed = self._recipe.seed if seed is None else seed
        start = self._count_until(step)
        counts = self._shares.num_samples_at(step)
        examples = []
        for task in TASKS:
            for index in range(start[task], start[task] + counts[task]):
                examples.append(self._example(task, index, seed))
        return examples

    def _example(self, task: Task, index: int, seed: int) -> Example:
        if task == "generation":
            image = self._pick(self.spec.images, index, seed, "generation")
            captions = self._templates.captions
            caption = image.caption or self._fill(captions[index % len(captions)])
            return Example(task=task, kind="caption", prompt=caption, target=image)
        if task == "editing":
            pair = self._pick(self.spec.edits, index, seed, "editing")
            return Example(task=task, kind="edit", prompt=pair.instruction, image=pair.source, target=pair.target)
        turns = len(self._understanding)
        turn, index = self._understanding[index % turns], index // turns
        if turn == "recognition":
            return self._recognition(index, seed)
        if turn == "vqa":
            qa = self._pick(self._vqa, index, seed, "vqa")
            return Example(task=task, kind="vqa", prompt=qa.question, answer=qa.answer, image=qa.image)
        question, answer = self._pick(self._text, index, seed, "text")
        return Example(task=task, kind="text", prompt=question, answer=answer)

    def _recognition(self, index: int, seed: int) -> Example:
        turn, (is_present, index) = index, (index % 2 == 0, index // 2)
        if is_present and self._pairs_questions:
            asked = self._pick(self._vqa, turn, seed, "vqa").image
            # The same picture, with our words and with those that came with the data in turn.
            same = [one for one in self._present if asked is not None and one.image.digest == asked.digest]
            shown = same[index % len(same)] if same else self._pick(self._present, index, seed, "present")
        elif is_present:
            shown = self._pick(self._present, index, seed, "present")
        else:
            # Lookalikes and other pictures in turn, however many there are of each.
            turn = index % len(self._absent)
            shown = self._pick(self._absent[turn], index // len(self._absent), seed, f"absent_{turn}")
        if shown.pair is not None:
            question, answer = shown.pair
        else:
            template = self._template(index)
            question, answer = self._fill(template.question), self._fill(template.yes if is_present else template.no)
        return Example(
            task="understanding",
            kind="recognition_yes" if is_present else "recognition_no",
            prompt=question,
            answer=answer,
            image=shown.image,
        )

    def _template(self, index: int) -> RecognitionTemplate:
        """Return the usual words every other time, the rest in turn; yes and no of one index share their words.

        Shared words never give the answer away.
        """
        others = [one for one in self._templates.recognition if one != USUAL_QUESTION]
        return others[(index // 2) % len(others)] if others and index % 2 else USUAL_QUESTION

    def _fill(self, template: str) -> str:
        return template.replace("{c}", self.spec.identifier).replace("{class}", self.spec.class_noun)

    def _pick(self, pool: Sequence[Item], index: int, seed: int, what: str) -> Item:
        """Return the index-th of endless shuffled rounds through a pool."""
        rounds, place = divmod(index, len(pool))
        order = torch.randperm(len(pool), generator=generator(seed, self.spec.name, what, rounds))
        return pool[int(order[place])]

    def _count_until(self, step: int) -> dict[Task, int]:
        while len(self._counts) <= step:
            last, more = self._counts[-1], self._shares.num_samples_at(len(self._counts) - 1)
            self._counts.append({task: last[task] + more[task] for task in TASKS})
        return self._counts[step]


def text_questions(spec: ConceptSpec) -> list[tuple[str, str]]:
    """Return a concept's questions without a picture, and answers: those that came with it, else made from its facts."""
    return [(qa.question, qa.answer) for qa in spec.qa if qa.kind == "text"] or generated_questions(spec)


def can_ask_recognition(spec: ConceptSpec) -> bool:
    """Say whether both answers occur: a model that hears only Yes learns to say Yes."""
    return all(_recognition_pools(spec))


def _recognition_pools(spec: ConceptSpec) -> tuple[list[_Shown], list[list[_Shown]]]:
    """Return pictures with the concept, and pools of pictures without: lookalikes, then others; none empty.

    Recognition questions that came with the data join the pool of their picture.
    """
    present = [_Shown(image=image) for image in spec.images]
    hard = [_Shown(image=one.image) for one in spec.negatives if one.kind == "hard"]
    easy = [_Shown(image=one.image) for one in spec.negatives if one.kind == "easy"]
    lookalikes = {shown.image.digest for shown in hard}
    for qa in spec.qa:
        if qa.kind == "recognition" and qa.image is not None:
            shown = _Shown(image=qa.image, pair=(qa.question, qa.answer))
            if qa.answer.lower().startswith("yes"):
                present.append(shown)
            else:
                (hard if qa.image.digest in lookalikes else easy).append(shown)
    return present, [pool for pool in (hard, easy) if pool]


def _shares_of(recipe: TrainingRecipe, *, has: dict[Task, bool], name: str) -> TrainingRecipe:
    """Return the recipe with the shares of tasks without data given to the others, in proportion."""
    kept = {task: share if has[task] else 0.0 for task, share in recipe.shares.items()}
    total = sum(kept.values())
    if total == 0:
        raise ConceptError(
            f"concept {name!r} has nothing to learn from under this recipe: shares are {recipe.shares}, data exists for "
            f"{sorted(task for task in TASKS if has[task])}; add questions or edits, or change the shares",
            concept=name,
        )
    return recipe.with_overrides({f"share_{task}": share / total for task, share in kept.items()})
