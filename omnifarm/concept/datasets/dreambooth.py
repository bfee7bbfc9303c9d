"""DreamBooth's layout: a folder of photographs a subject and one text file that names their classes and the prompts.

    <root>/prompts_and_classes.txt      "subject_name,class" lines, then two lists of 25 prompts
    <root>/<subject>/00.jpg ..          the concept

No texts, no negatives, no test pictures: concepts borrow each other's photographs as negatives, and texts can be made
with `omnifarm concept describe`. Without the text file the layout must be named (`dreambooth+FOLDER`); the class is
then guessed from the folder's name ("dog6" is a dog), with a warning.
"""

import re

from omnifarm.concept.datasets.concept_folder import ConceptFolder
from omnifarm.concept.datasets.held_out import HeldOut
from omnifarm.concept.datasets.layout import Layout
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader, is_photo, natural
from omnifarm.concept.sources import FileSource
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError

TEXT_FILE = "prompts_and_classes.txt"
"""Names classes and prompts."""

_NOT_SUBJECTS = ("negatives", "edit_pairs", "test")
_LIVE_CLASSES = ("cat", "dog")
_CLASS_LINE = re.compile(r"^(\w[\w-]*),\s*([\w -]+?)\s*$", re.MULTILINE)
_PROMPT = re.compile(r"'([^'\n]*\{0\} \{1\}[^'\n]*)'")


def is_root(source: FileSource) -> bool:
    """Return whether a source is the root of this layout."""
    return TEXT_FILE in source.paths()


def names(reader: Reader) -> list[str]:
    """Return the folders that hold photographs."""
    found = {path.split("/")[0] for path in reader.source.paths() if path.count("/") == 1 and is_photo(path)}
    return sorted(found.difference(_NOT_SUBJECTS), key=natural)


def read(reader: Reader, name: str, problems: Problems) -> ConceptSpec | None:
    """Read one subject."""
    folder = _concept_folder(reader, name, problems)
    if not folder.is_usable():
        return None
    noun = _classes(reader).get(name, "")
    if not noun:
        noun = re.sub(r"[\d_-]+", " ", name).strip()
        problems.warn(
            TEXT_FILE,
            f"does not say what {name!r} is; {noun!r} is assumed from the folder's name",
            consumer="captions, questions and edits",
            fix=f"add the line `{name},dog` with the right class",
        )
    images = folder.images(folder.photographs(within=name))
    group = "pet" if noun in _LIVE_CLASSES else "object"
    return folder.spec({"class": noun, "conversation_type": group}, images=tuple(images))


def read_held_out(reader: Reader, name: str, problems: Problems) -> HeldOut | None:
    """Return the prompts of the subject's kind; the layout holds out no pictures."""
    folder = _concept_folder(reader, name, problems)
    noun = _classes(reader).get(name, "")
    lists = _prompts(reader)
    prompts = lists["live"] if noun in _LIVE_CLASSES else lists["object"]
    return HeldOut(
        name=name,
        portrait_prompt=folder.named("A photo of <sks>."),
        # The identifier stands for "{unique token} {class}", as UnifyBench's own copy of the list has it.
        plain_prompts=tuple(prompt.replace("{0} {1}", f"<{name}>") for prompt in prompts),
        source=reader.source,
    )


def _concept_folder(reader: Reader, name: str, problems: Problems) -> ConceptFolder:
    return ConceptFolder(reader, name, folder=name, test_folder=f"test/{name}", problems=problems)


def _text(reader: Reader) -> str:
    try:
        return reader.text(TEXT_FILE)
    except ConceptError:
        return ""


def _classes(reader: Reader) -> dict[str, str]:
    classes = dict(_CLASS_LINE.findall(_text(reader).partition("Prompts")[0]))
    classes.pop("subject_name", None)
    return classes


def _prompts(reader: Reader) -> dict[str, list[str]]:
    objects, _, live = _text(reader).partition("Object Prompts")[2].partition("Live Subject Prompts")
    return {"object": _PROMPT.findall(objects), "live": _PROMPT.findall(live)}


LAYOUT = Layout(name="dreambooth", is_root=is_root, places=names, read=read, held_out=read_held_out)
"""DreamBooth's data set and folders shaped like it."""
