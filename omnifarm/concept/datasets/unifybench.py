"""UnifyBench's layout, read tolerantly: the twenty-concept data set of UniCTokens and folders shaped like it.

    <root>/concepts_list.json                       names (optional)
    <root>/concept/train/train_images.json          {c: ["0.png", ...]}; absent: the numbered pictures, with a warning
    <root>/concept/train/<c>/info.json, 0.png ..    the concept
    <root>/concept/train/<c>/conversations.json ..  questions (see `_QA_FILES`)
    <root>/concept/train/<c>/negative_example/      hard negatives (also `negative/`)
    <root>/random_images/                           easy negatives of all concepts
    <root>/showo_training_data_stage_<k>/<c>.json   LLaVA-style questions, read where the concept has no others
    <root>/concept/test/<c>/0.png ..                held out (see `unifybench_held_out.py`)
    <root>/omnipbench_edit/train/<c>/pairs.jsonl    edits (ours)

The public files disagree about names and shapes; what is accepted is said where it is read. UnifyBench++ differs in
its held-out prompts alone.
"""

import re
from fnmatch import fnmatch

from omnifarm.concept.datasets.concept_folder import ConceptFolder, QAFileKind, is_blank
from omnifarm.concept.datasets.edit_files import training_edits
from omnifarm.concept.datasets.layout import Layout
from omnifarm.concept.datasets.unifybench_held_out import TEST, has_aligned_conditions, read_held_out
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader, is_photo, natural
from omnifarm.concept.sources import FileSource
from omnifarm.concept.spec import QA, ConceptSpec
from omnifarm.errors import ConceptError

TRAIN = "concept/train"
"""Folder of what is learned from."""

_NUMBERED = re.compile(r"[0-9]+\.[^.]+")
_QA_FILES: tuple[tuple[str, QAFileKind], ...] = (
    ("conversation*.json", "vqa"),
    ("text-only-conversation.json", "text"),
    ("text_only_conversation*.json", "text"),
    ("positive_recognition*.json", "yes"),
    ("recognition_positive*.json", "yes"),
    ("random_recognition*.json", "no"),
    ("negative_recognition*.json", "no"),
    ("recognition_negative*.json", "no"),
    ("recognition_strong_negative*.json", "no"),
)
_STAGES = ("showo_training_data_stage_1", "showo_training_data_stage_2", "showo_training_data_stage_3")


def is_root(source: FileSource) -> bool:
    """Return whether a source is the root of this layout."""
    return any(path.startswith(f"{TRAIN}/") for path in source.paths())


def is_plus_root(source: FileSource) -> bool:
    """Return whether a source is the root of UnifyBench++: its conditions come in aligned lists."""
    return is_root(source) and has_aligned_conditions(Reader(source))


def names(reader: Reader) -> list[str]:
    """Return the concepts of a root: those listed, else every folder of `concept/train`."""
    found = {
        path.split("/")[2] for path in reader.source.paths() if path.startswith(f"{TRAIN}/") and path.count("/") > 2
    }
    if "concepts_list.json" in reader.source.paths():
        listed = reader.json("concepts_list.json")
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise ConceptError("concepts_list.json: must be a list of folder names; mend or delete the file")
        return sorted(set(listed), key=natural)
    return sorted(found, key=natural)


def concept_folder(reader: Reader, name: str, problems: Problems) -> ConceptFolder:
    """Return the folder of one concept of this layout."""
    return ConceptFolder(
        reader,
        name,
        folder=f"{TRAIN}/{name}",
        test_folder=f"{TEST}/{name}",
        problems=problems,
        roots=("concept", TRAIN),
        test_roots=("concept", TEST),
        concepts=names(reader),
    )


def read(reader: Reader, name: str, problems: Problems) -> ConceptSpec | None:
    """Read one concept; `name` is its folder under `concept/train`."""
    folder = concept_folder(reader, name, problems)
    if not folder.is_usable():
        return None
    path = f"{folder.folder}/info.json"
    consumer = "captions, questions and edits"
    info = folder.json(path, consumer=consumer)
    info = {} if info is None else folder.checked_info(info, where=path, fix="add the class noun")
    images = folder.images(_listed_photographs(folder), captions=_captions(folder))
    own = folder.folder
    negatives = folder.negatives(
        ((f"{own}/negative_example", "hard"), (f"{own}/negative", "hard"), ("random_images", "easy"))
    )
    qa = folder.questions(_question_files(folder)) or _stage_questions(folder, {one.image.path for one in negatives})
    edits = training_edits(folder, class_noun=str(info.get("class", "")))
    return folder.spec(info, images=tuple(images), qa=tuple(qa), negatives=tuple(negatives), edits=tuple(edits))


def _question_files(folder: ConceptFolder) -> list[tuple[str, QAFileKind]]:
    found = []
    for path in folder.own:
        file = path[len(folder.folder) + 1 :]
        kind = next((kind for pattern, kind in _QA_FILES if fnmatch(file, pattern)), None)
        found += [] if kind is None else [(path, kind)]
    return found


def _stage_questions(folder: ConceptFolder, negatives: set[str]) -> list[QA]:
    """Read the newest of the derived files; entries without an image are dropped there, and here unless textual."""
    path = next(
        (f"{stage}/{folder.name}.json" for stage in reversed(_STAGES) if f"{stage}/{folder.name}.json" in folder.paths),
        "",
    )
    if not path:
        return []
    found: list[QA] = []
    for record in folder.records(path, consumer="answering questions"):
        if not record.image or is_blank(record.image):
            kind: QAFileKind = "text"
        elif folder.foreign.resolve(record.image) in negatives:
            kind = "no"
        else:
            kind = "yes" if record.answer.lower().startswith("yes") else "vqa"
        qa = folder.question(record, kind, path)
        found += [] if qa is None else [qa]
    return found


def _listed_photographs(folder: ConceptFolder) -> list[str]:
    path = f"{TRAIN}/train_images.json"
    consumer = "choosing the photographs to learn from"
    if path in folder.paths:
        lists = folder.json(path, consumer=consumer)
        if lists is None:
            return []
        files = lists.get(folder.name) if isinstance(lists, dict) else None
        if isinstance(files, list) and all(isinstance(file, str) for file in files):
            found = [(file, folder.foreign.resolve(file)) for file in files]
            for file, resolved in found:
                if resolved is None:
                    folder.problems.error(
                        path,
                        f"names {file!r}, which does not exist",
                        consumer=consumer,
                        fix="add the picture or take it off the list",
                    )
            return [resolved for _, resolved in found if resolved is not None]
    numbered = [path for path in folder.photographs(within=folder.folder) if _is_numbered(path.rpartition("/")[2])]
    folder.problems.warn(
        path,
        f"does not list {folder.name!r}",
        consumer=consumer,
        fix=f"nothing, if the {len(numbered)} numbered pictures of {folder.folder} are meant",
    )
    return numbered


def _is_numbered(file: str) -> bool:
    return is_photo(file) and _NUMBERED.fullmatch(file) is not None


def _captions(folder: ConceptFolder) -> dict[str, str]:
    path = f"{folder.folder}/captions.json"
    values = folder.json(path, consumer="drawing") if path in folder.paths else None
    if not isinstance(values, dict):
        return {}
    return {
        file.replace("\\", "/").rpartition("/")[2]: folder.named(text)
        for file, text in values.items()
        if isinstance(text, str)
    }


LAYOUT = Layout(name="unifybench", is_root=is_root, places=names, read=read, held_out=read_held_out(concept_folder))
"""The base data set and folders shaped like it."""
PLUS = Layout(
    name="unifybench++", is_root=is_plus_root, places=names, read=read, held_out=read_held_out(concept_folder)
)
"""With UnifyBench++'s conditions."""
