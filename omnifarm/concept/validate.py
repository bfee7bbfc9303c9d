"""Everything wrong at a place, before a machine is paid for: what `omnifarm concept validate` prints."""

from omnifarm.concept.datasets.load import Reading, held_out_problems, read_place
from omnifarm.concept.problems import Problem, Problems
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError

__all__ = ["Problem", "validate"]


def validate(path: str) -> list[Problem]:
    """Name every problem of the concepts at a place, each with what the data would have been used for.

    Args:
        path: As for `omnifarm.concept.datasets.load.load_concepts`.

    Returns:
        Problems ordered by concept; empty when everything can be learned as meant. Errors stop their concept,
        warnings say what will not be learned.

    Raises:
        StoreError: The store does not answer.
    """
    try:
        readings = read_place(path)
    except ConceptError as error:
        return [
            Problem(
                where=path,
                what=error.message,
                consumer="everything that is learned",
                fix="see `omnifarm concept validate --help` for what a folder may hold",
            )
        ]
    held_out = held_out_problems(path)
    return [problem for one in readings for problem in (*one.problems, *_gaps(one), *held_out.get(one.name, ()))]


def _gaps(reading: Reading) -> list[Problem]:
    """Warn about data that is not there and what is therefore not learned."""
    spec = reading.spec
    if spec is None:
        return []
    gaps = Problems(concept=spec.name)
    where = spec.name
    if not spec.negatives:
        gaps.warn(
            where,
            "has no pictures without the concept",
            consumer="recognition (a concept never learns to say No, so it is not taught to say Yes either)",
            fix="add lookalikes to negatives/ or learn it together with other concepts",
        )
    if not spec.edits:
        gaps.warn(
            where,
            "has no edit pairs",
            consumer="editing (its share of the training goes to the rest)",
            fix="add `edits:` with a source and a target picture, or leave it so",
        )
    if not spec.info:
        gaps.warn(
            where,
            "has no sentence about its looks",
            consumer="questions about looks",
            fix=f"add `info: {spec.identifier} is ...`",
        )
    if not spec.extra_info and not any(qa.kind == "text" for qa in spec.qa):
        gaps.warn(
            where,
            "has no facts that photographs do not show",
            consumer="knowledge replay",
            fix=f"add `extra_info:` sentences such as `{spec.identifier} has a red hat.`",
        )
    _warn_unnamed(spec, gaps)
    return gaps.found


def _warn_unnamed(spec: ConceptSpec, gaps: Problems) -> None:
    sentences = [("info", spec.info)] if spec.info else []
    sentences += [(f"extra_info[{index}]", text) for index, text in enumerate(spec.extra_info)]
    for field_name, text in sentences:
        if spec.identifier not in text:
            gaps.warn(
                f"{spec.name}: {field_name}",
                f"does not name the concept: {text[:80]!r}",
                consumer="questions made from it",
                fix=f"write {spec.identifier} or <sks> where the concept is meant",
            )
