"""What UnifyBench and UnifyBench++ hold out: test pictures, questions, drawing conditions and edits.

    <root>/test_data/<c>.json                     every question, typed; preferred
    <root>/concept/test/<c>/0.png .. 4.png        pictures
    <root>/concept/test/<c>/vqa.json, text_only.json    questions, read where test_data/ is missing
    <root>/concept/test/<c>/t2i_conditions.json   a list (base) or aligned lists (UnifyBench++)

Where `test_data/` is missing, recognition is derived: the test pictures, and as many test pictures of other concepts,
those of the same group first, in an order fixed by their names (OMNIPBENCH protocol A3); the result says so.
"""

import hashlib
from collections.abc import Callable

from omnifarm.concept.datasets.concept_folder import ConceptFolder
from omnifarm.concept.datasets.edit_files import held_out_edits
from omnifarm.concept.datasets.foreign_json import Record
from omnifarm.concept.datasets.held_out import HeldOut, HeldOutKind, HeldOutQuestion, KnowledgePrompt
from omnifarm.concept.datasets.layout import ReadHeldOut
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader, is_photo
from omnifarm.concept.spec import ConceptImage
from omnifarm.errors import ConceptError

TEST = "concept/test"
"""Folder of what is held out."""

_CONDITIONS = "t2i_conditions.json"
_KNOWLEDGE = "personalized_driven_generation"
_EXPLICIT = "explicit_personalized_driven_generation"
_PERSONAL_DENSE = "personalized_dense_prompt_generation"
_EXPLICIT_DENSE = "explicit_personalized_dense_prompt_generation"
_DENSE = "dense_prompt_generation"
_CONSUMER = "scoring"


def read_held_out(concept_folder: Callable[[Reader, str, Problems], ConceptFolder]) -> ReadHeldOut:
    """Return the reader of held-out data for folders found by `concept_folder`."""

    def read(reader: Reader, name: str, problems: Problems) -> HeldOut | None:
        folder = concept_folder(reader, name, problems)
        images = folder.test_images()
        path = f"test_data/{name}.json"
        is_derived = path not in folder.paths
        questions = _derived(folder, images) if is_derived else _typed(folder, path)
        portrait, knowledge, dense = _conditions(folder)
        edits = held_out_edits(folder)
        if problems.has_errors:
            return None
        return HeldOut(
            name=name,
            images=tuple(images),
            questions=tuple(questions),
            portrait_prompt=portrait,
            knowledge_prompts=tuple(knowledge),
            dense_prompts=tuple(dense),
            edits=tuple(edits),
            is_derived=is_derived,
            source=reader.source,
        )

    return read


def has_aligned_conditions(reader: Reader) -> bool:
    """Return whether any concept's conditions are UnifyBench++'s: an object of lists instead of one list."""
    path = next(
        (path for path in reader.source.paths() if path.startswith(f"{TEST}/") and path.endswith(_CONDITIONS)), ""
    )
    try:
        return bool(path) and isinstance(reader.json(path), dict)
    except ConceptError:
        return False


def derived_recognition(
    folder: ConceptFolder, images: list[ConceptImage], strangers: list[str]
) -> list[HeldOutQuestion]:
    """Return recognition questions: the concept's test pictures, and as many of the strangers.

    Args:
        folder: The concept.
        images: Its test pictures.
        strangers: Pictures without it, the preferred first.
    """
    question = folder.named("Is <sks> in the photo?")
    found = [HeldOutQuestion(kind="recognition", question=question, answer="Yes", image=image) for image in images]
    own = {image.digest for image in images}
    for path in strangers:
        if len(found) >= 2 * len(images):
            break
        image = folder.reader.image(path, problems=folder.problems, consumer=_CONSUMER)
        if image is not None and image.digest not in own:
            found.append(HeldOutQuestion(kind="recognition", question=question, answer="No", image=image))
    return found


def shuffled(paths: list[str], *, name: str) -> list[str]:
    """Return paths in an order that looks random and is the same on every machine."""
    return sorted(paths, key=lambda path: hashlib.sha256(f"{name}:{path}".encode()).digest())


def _typed(folder: ConceptFolder, path: str) -> list[HeldOutQuestion]:
    found = []
    for record in folder.records(path, consumer=_CONSUMER):
        kind = _kind(record)
        if kind is None:
            folder.problems.warn(
                path,
                f"has an entry of type {record.kind!r}, which is none of rec, vqa, text_only, choice",
                consumer=_CONSUMER,
                fix="mend the type; the entry is left out",
            )
            continue
        question = folder.held_out_question(record, kind, path)
        found += [] if question is None else [question]
    return found


def _kind(record: Record) -> HeldOutKind | None:
    if "choice" in record.kind:
        return "choice"
    kinds: dict[str, HeldOutKind] = {"rec": "recognition", "vqa": "vqa", "text_only": "text", "qa": "text"}
    return kinds.get(record.kind)


def _derived(folder: ConceptFolder, images: list[ConceptImage]) -> list[HeldOutQuestion]:
    others = [
        path
        for path in folder.paths
        if path.startswith(f"{TEST}/") and is_photo(path) and path.count("/") == 3 and path.split("/")[2] != folder.name
    ]
    own_group = _group(folder, folder.name)
    others = shuffled(others, name=folder.name)
    others.sort(key=lambda path: _group(folder, path.split("/")[2]) != own_group)
    found = derived_recognition(folder, images, others)
    files: tuple[tuple[str, HeldOutKind], ...] = (("vqa.json", "vqa"), ("text_only.json", "text"))
    for file, kind in files:
        path = f"{folder.test_folder}/{file}"
        if path in folder.paths:
            questions = (
                folder.held_out_question(record, kind, path) for record in folder.records(path, consumer=_CONSUMER)
            )
            found += [one for one in questions if one is not None]
    return found


def _group(folder: ConceptFolder, name: str) -> str:
    try:
        info = folder.reader.json(f"concept/train/{name}/info.json")
    except ConceptError:
        return ""
    return str(info.get("conversation_type") or info.get("class") or "") if isinstance(info, dict) else ""


def _conditions(folder: ConceptFolder) -> tuple[str, list[KnowledgePrompt], list[str]]:
    """Return (portrait prompt, knowledge prompts, dense prompts)."""
    path = f"{folder.test_folder}/{_CONDITIONS}"
    values = folder.json(path, consumer=_CONSUMER) if path in folder.paths else []
    if isinstance(values, list) and all(isinstance(one, str) for one in values):
        # Element 0 is the portrait, by position: the public scripts rely on it.
        texts = [folder.named(text) for text in values]
        return (texts[0] if texts else ""), [KnowledgePrompt(prompt=text) for text in texts[1:]], []
    if isinstance(values, dict):
        return folder.named("A photo of <sks>."), *_aligned(folder, path, values)
    if values is not None:
        folder.problems.error(
            path,
            "must be a list of prompts, or UnifyBench++'s object of lists",
            consumer=_CONSUMER,
            fix='write ["A photo of <c>.", "..."]',
        )
    return "", [], []


def _aligned(folder: ConceptFolder, path: str, values: dict[str, object]) -> tuple[list[KnowledgePrompt], list[str]]:
    lists = {
        key: [folder.named(str(one)) for one in given] if isinstance(given := values.get(key), list) else []
        for key in (_KNOWLEDGE, _EXPLICIT, _PERSONAL_DENSE, _EXPLICIT_DENSE, _DENSE)
    }
    knowledge: list[KnowledgePrompt] = []
    num_held_out = _num_testing(folder)
    for asked, explicit in ((_KNOWLEDGE, _EXPLICIT), (_PERSONAL_DENSE, _EXPLICIT_DENSE)):
        if lists[explicit] and len(lists[explicit]) != len(lists[asked]):
            folder.problems.error(
                path,
                f"{explicit} must hold as many prompts as {asked}, found {len(lists[explicit])} and {len(lists[asked])}",
                consumer=_CONSUMER,
                fix="add the missing ones; they are paired by position",
            )
            continue
        rewrites = lists[explicit] or [""] * len(lists[asked])
        pairs = [KnowledgePrompt(prompt=one, explicit=other) for one, other in zip(lists[asked], rewrites, strict=True)]
        # Only the last are held out; those before them are for training methods that learn from prompts.
        knowledge += pairs[-num_held_out:] if num_held_out else pairs
    return knowledge, lists[_DENSE]


def _num_testing(folder: ConceptFolder) -> int:
    path = f"{folder.folder}/info.json"
    info = folder.json(path, consumer=_CONSUMER) if path in folder.paths else None
    number = info.get("num_testing_info") if isinstance(info, dict) else None
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return number
    folder.problems.warn(
        path,
        f"num_testing_info must be a positive number, found {number!r}",
        consumer=_CONSUMER,
        fix="add it; until then every condition is scored",
    )
    return 0
