"""Yo'Chameleon's layout: Yo'LLaVA's pictures with one list of conversations a concept.

    <root>/train/<c>/0.png .., negative_example/    the concept and its look-alikes
    <root>/<any folder>/<c>.json or <c>/<any>.json  [{"image": [path], "conversations": [{"from", "value"}, ...]}]
    <root>/test/<c>/0.png ..                        held out
    <root>/classes.json                             {"bo": "dog", ...} (ours)

Its texts hold reserved tokens: `<reserved16200>` is the concept, those after it are learned tokens of its own method.
Answers that are only `<image>` are drawings to learn; ours come from the photographs, so they are passed over, and
the retrieved look-alikes they name ("soft positives") stay what they are: pictures without the concept.
"""

import re
from dataclasses import replace

from omnifarm.concept.datasets import yollava
from omnifarm.concept.datasets.concept_folder import ConceptFolder, QAFileKind
from omnifarm.concept.datasets.foreign_json import Record
from omnifarm.concept.datasets.layout import Layout
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader
from omnifarm.concept.sources import FileSource
from omnifarm.concept.spec import QA, ConceptSpec
from omnifarm.errors import ConceptError

_SYSTEM = re.compile(r"^\s*(<[\w-]+>) is (?:<(?:reserved|token_)\d+>\s*)+\.\s*")
_RESERVED = re.compile(r"<reserved\d+>")
_ASKS_PRESENCE = re.compile(
    r"^(is|are|can|could|do|does|would|will|have|hey|please)\b.*\b(photo|image|picture|snapshot|frame|scene|appears?|visible|here)\b",
    re.IGNORECASE,
)


def is_root(source: FileSource) -> bool:
    """Return whether a source is the root of this layout."""
    if not yollava.is_root(source):
        return False
    reader = Reader(source)
    return any(_lists(reader, name) for name in yollava.names(reader))


def read(reader: Reader, name: str, problems: Problems) -> ConceptSpec | None:
    """Read one concept; `name` is its folder under `train`."""
    folder = yollava.concept_folder(reader, name, problems)
    if not folder.is_usable():
        return None
    info = folder.info_of_set()
    images = folder.images(folder.photographs(within=folder.folder))
    negatives = folder.negatives(((f"{folder.folder}/negative_example", "hard"),))
    qa: dict[tuple[str, str, str], QA] = {}
    own = {image.path for image in images}
    for path in _lists(reader, name):
        for record in folder.records(path, consumer="answering questions"):
            found = _question(folder, record, path, own)
            if found is not None:
                # Five photographs are repeated to about two hundred entries; each is learned once a round here.
                qa.setdefault((found.question, found.answer, found.image.digest if found.image else ""), found)
    return folder.spec(info, images=tuple(images), negatives=tuple(negatives), qa=tuple(qa.values()))


def _question(folder: ConceptFolder, record: Record, path: str, own: set[str]) -> QA | None:
    if record.answer.strip() == "<image>":
        return None
    named = replace(record, question=_plain(record.question, folder.name), answer=_plain(record.answer, folder.name))
    kind: QAFileKind = "text" if not named.image else "vqa"
    if named.image and _ASKS_PRESENCE.match(named.question.replace("<image>", "").strip()):
        kind = "yes" if folder.foreign.resolve(named.image) in own else "no"
    return folder.question(named, kind, path)


def _plain(text: str, name: str) -> str:
    """Drop the sentence that introduces learned tokens; the reserved token that is left over is the concept."""
    text = _SYSTEM.sub("", text)
    return _RESERVED.sub(f"<{name}>", text)


def _lists(reader: Reader, name: str) -> list[str]:
    """Return the files that hold a concept's list of conversations."""
    found = []
    for path in reader.source.paths():
        folder, _, file = path.rpartition("/")
        is_own = file == f"{name}.json" or (folder.rpartition("/")[2] == name and file.endswith(".json"))
        if not is_own or folder.startswith("test/"):
            continue
        try:
            value = reader.json(path)
        except ConceptError:
            continue
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and isinstance(first.get("conversations"), list):
            found.append(path)
    return found


LAYOUT = Layout(name="yochameleon", is_root=is_root, places=yollava.names, read=read, held_out=yollava.read_held_out)
"""Yo'Chameleon's data set and folders shaped like it."""
