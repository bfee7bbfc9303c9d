"""From concepts and their held-out data to the list of everything that is asked.

What the data lacks is built here from what it has, always the same way, and named in the benchmark's notes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from omnifarm.bench.data.edits import derived_edits
from omnifarm.bench.data.prompts import PROMPTS
from omnifarm.bench.tasks import OPERATIONS, BenchConcept, Benchmark, Item, Sizes, Task
from omnifarm.concept.datasets.held_out import HeldOut, HeldOutEdit, HeldOutQuestion
from omnifarm.concept.spec import PLACEHOLDER, ConceptSpec

DERIVATION_SEED = 20251121
"""Seed of everything built here; published with the results."""
NUM_REFERENCES = 2
"""Photographs of the concept that a judge of edits sees."""

_TASK_OF: dict[str, Task] = {"recognition": "rec", "vqa": "vqa", "text": "qa"}

Thing = TypeVar("Thing")


def build_benchmark(
    pairs: Iterable[tuple[ConceptSpec, HeldOut]], *, sizes: Sizes, prompts: Mapping[str, Sequence[str]] = PROMPTS
) -> Benchmark:
    """Return the benchmark of some concepts.

    Args:
        pairs: What each concept is learned from and what it is scored on, in order.
        sizes: How much is asked.
        prompts: `object` and `live_subject` to general prompts with `<sks>`, for concepts that bring none.
    """
    concepts = [BenchConcept(spec=spec, held_out=held_out) for spec, held_out in pairs]
    concepts = _chosen(concepts, sizes.concepts)
    items: list[Item] = []
    notes: list[str] = []
    for concept in concepts:
        items += (
            _questions(concept, sizes, notes)
            + _drawings(concept, sizes, prompts, notes)
            + _edits(concept, sizes, notes)
        )
    return Benchmark(concepts=tuple(concepts), items=tuple(items), notes=tuple(notes))


def evenly(things: Sequence[Thing], number: int | None) -> list[Thing]:
    """Return `number` things spread evenly over all of them, in order; all when there are fewer or None is asked."""
    if number is None or number >= len(things):
        return list(things)
    return [things[index * len(things) // number] for index in range(number)]


def _chosen(concepts: Sequence[BenchConcept], number: int | None) -> list[BenchConcept]:
    """Take concepts from the groups in turn, so that few concepts still hold a person, a pet and an object."""
    if number is None or number >= len(concepts):
        return list(concepts)
    by_group: dict[str, list[BenchConcept]] = {}
    for concept in concepts:
        by_group.setdefault(concept.spec.group, []).append(concept)
    turns = [
        concept for rank in range(len(concepts)) for group in by_group.values() for concept in group[rank : rank + 1]
    ]
    kept = {concept.name for concept in turns[:number]}
    return [concept for concept in concepts if concept.name in kept]


def _questions(concept: BenchConcept, sizes: Sizes, notes: list[str]) -> list[Item]:
    by_task: dict[Task, list[HeldOutQuestion]] = {"rec": [], "vqa": [], "qa": []}
    num_choices = 0
    for question in concept.held_out.questions:
        task = _TASK_OF.get(question.kind)
        if task is None:
            num_choices += 1
        else:
            by_task[task].append(question)
    if num_choices:
        notes.append(
            f"{concept.name}: {num_choices} multiple-choice questions left out: the table has no column for them"
        )
    if concept.held_out.is_derived:
        notes.append(
            f"{concept.name}: recognition questions were built from the test pictures (no test_data file); "
            "strangers come in the order of the SHA-256 of concept:path, everywhere the same"
        )
    items = []
    for task, questions in by_task.items():
        for number, question in enumerate(_balanced(questions, sizes.questions)):
            items.append(
                Item(
                    id=f"{task}-{number:03d}",
                    task=task,
                    concept=concept.name,
                    text=question.question,
                    image=question.image,
                    reference=question.answer,
                )
            )
    return items


def _balanced(questions: Sequence[HeldOutQuestion], number: int | None) -> list[HeldOutQuestion]:
    """Cut to `number`, half of it negatives where the questions are about recognition."""
    negatives = [q for q in questions if q.kind == "recognition" and q.answer.lower().startswith("no")]
    if not negatives or number is None:
        return evenly(questions, number)
    positives = [q for q in questions if q not in negatives]
    return [*evenly(positives, number - number // 2), *evenly(negatives, number // 2)]


def _drawings(
    concept: BenchConcept, sizes: Sizes, prompts: Mapping[str, Sequence[str]], notes: list[str]
) -> list[Item]:
    spec, held_out = concept.spec, concept.held_out
    general = list(held_out.plain_prompts)
    if not general:
        kind = "object" if spec.group == "object" else "live_subject"
        general = [prompt.replace(PLACEHOLDER, spec.identifier) for prompt in prompts[kind]]
    items = _prompted(
        concept, "pure", [(prompt, "") for prompt in evenly(general, sizes.prompts)], sizes.images_per_prompt
    )
    portrait = held_out.portrait_prompt or f"A photo of {spec.identifier}."
    if spec.group == "person":
        items += _prompted(concept, "people", [(portrait, "")], sizes.people_images)
    open_requests = [(one.prompt, one.explicit) for one in evenly(held_out.knowledge_prompts, sizes.parg_prompts)]
    if not open_requests:
        notes.append(f"{concept.name}: no prompts that lean on a fact (t2i_conditions.json), so no PARG score")
    return items + _prompted(concept, "parg", open_requests, sizes.parg_images)


def _prompted(concept: BenchConcept, task: Task, prompts: Iterable[tuple[str, str]], copies: int) -> list[Item]:
    return [
        Item(
            id=f"{task}-{number:03d}-{index:02d}",
            task=task,
            concept=concept.name,
            text=prompt,
            reference=explicit,
            index=index,
        )
        for number, (prompt, explicit) in enumerate(prompts)
        for index in range(copies)
    ]


def _edits(concept: BenchConcept, sizes: Sizes, notes: list[str]) -> list[Item]:
    edits: Sequence[HeldOutEdit] = concept.held_out.edits
    if not edits:
        edits = derived_edits(concept, seed=DERIVATION_SEED)
        notes.append(f"{concept.name}: {len(edits)} edits were built from the test pictures, seed {DERIVATION_SEED}")
    by_operation = {name: [edit for edit in edits if edit.operation == name] for name in OPERATIONS}
    least = min(map(len, by_operation.values()))
    if sum(map(len, by_operation.values())) != least * len(OPERATIONS):
        counts = ", ".join(f"{len(found)} {name}" for name, found in by_operation.items())
        notes.append(
            f"{concept.name}: edits cut to {least} of each kind so that every kind weighs a fifth, found {counts}"
        )
    number = least if sizes.edits_per_operation is None else min(least, sizes.edits_per_operation)
    return [
        Item(
            id=f"edit-{operation.partition('_')[0]}-{place:02d}",
            task="edit",
            concept=concept.name,
            text=edit.instruction,
            image=edit.source,
            operation=operation,
            references=(edit.references or concept.held_out.images)[:NUM_REFERENCES],
        )
        for operation, found in by_operation.items()
        for place, edit in enumerate(evenly(found, number))
    ]
