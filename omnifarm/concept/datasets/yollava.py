"""Yo'LLaVA's layout: forty subjects, photographs and retrieved look-alikes, no class nouns.

<root>/train/<c>/0.png ..                       the concept
<root>/train/<c>/negative_example/              look-alikes (scores.json beside them is not needed)
<root>/<any folder>/<c>/recognition_positive.json, recognition_negative-laion.json,
    recognition_negative-cc12m.json, text-only-conversation.json        questions; the training script looks
    for other names (positive_recognition.json ...), which are read too
<root>/test/<c>/0.png ..                        held out
<root>/yollava-visual-qa.json, *text*qa*.json   held-out choices, with or without a level of concept names
<root>/classes.json                             {"bo": "dog", ...} (ours: the data names no classes)
"""

from fnmatch import fnmatch

from omnifarm.concept.datasets.concept_folder import ConceptFolder, QAFileKind
from omnifarm.concept.datasets.held_out import HeldOut, HeldOutQuestion
from omnifarm.concept.datasets.layout import Layout
from omnifarm.concept.datasets.unifybench_held_out import derived_recognition, shuffled
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader, is_photo, natural
from omnifarm.concept.sources import FileSource
from omnifarm.concept.spec import ConceptSpec

QA_FILES: tuple[tuple[str, QAFileKind], ...] = (
    ("recognition_positive*.json", "yes"),
    ("positive_recognition*.json", "yes"),
    ("recognition_negative*.json", "no"),
    ("negative_recognition*.json", "no"),
    ("text-only-conversation*.json", "text"),
)
"""Files of questions of a concept, by pattern."""


def is_root(source: FileSource) -> bool:
    """Return whether a source is the root of this layout: train/<c>/ with photographs."""
    return any(path.startswith("train/") and path.count("/") == 2 and is_photo(path) for path in source.paths())


def names(reader: Reader) -> list[str]:
    """Return the folders of train/."""
    paths = reader.source.paths()
    found = {path.split("/")[1] for path in paths if path.startswith("train/") and path.count("/") >= 2}
    return sorted(found, key=natural)


def concept_folder(reader: Reader, name: str, problems: Problems) -> ConceptFolder:
    """Return the folder of one concept of this layout."""
    return ConceptFolder(
        reader,
        name,
        folder=f"train/{name}",
        test_folder=f"test/{name}",
        problems=problems,
        concepts=names(reader),
    )


def read(reader: Reader, name: str, problems: Problems) -> ConceptSpec | None:
    """Read one concept; `name` is its folder under `train`."""
    folder = concept_folder(reader, name, problems)
    if not folder.is_usable():
        return None
    info = folder.info_of_set()
    images = folder.images(folder.photographs(within=folder.folder))
    negatives = folder.negatives(((f"{folder.folder}/negative_example", "hard"),))
    qa = folder.questions(question_files(folder, QA_FILES))
    return folder.spec(info, images=tuple(images), negatives=tuple(negatives), qa=tuple(qa))


def question_files(folder: ConceptFolder, patterns: tuple[tuple[str, QAFileKind], ...]) -> list[tuple[str, QAFileKind]]:
    """Return the files of questions in any folder that is called as the concept is, test folders left out."""
    found = []
    for path in folder.paths:
        parts = path.split("/")
        if len(parts) < 2 or parts[-2] != folder.name or path.startswith(f"{folder.test_folder}/"):
            continue
        kind = next((kind for pattern, kind in patterns if fnmatch(parts[-1], pattern)), None)
        found += [] if kind is None else [(path, kind)]
    return found


def read_held_out(reader: Reader, name: str, problems: Problems) -> HeldOut | None:
    """Read the test pictures and the multiple choices about them; recognition is derived from the test pictures."""
    folder = concept_folder(reader, name, problems)
    images = folder.test_images()
    known = {image.path for image in images}
    questions: list[HeldOutQuestion] = []
    for path in folder.paths:
        if not path.endswith(".json") or "/" in path or "qa" not in path.lower():
            continue
        for record in folder.records(path, consumer="scoring"):
            if record.image and folder.foreign_test.resolve(record.image) not in known:
                # Without a level of concept names, a file holds every concept's pictures.
                continue
            question = folder.held_out_question(record, "choice", path)
            questions += [] if question is None else [question]
    strangers = [
        path for path in folder.paths if path.startswith("test/") and is_photo(path) and path.split("/")[1] != name
    ]
    questions += derived_recognition(folder, images, shuffled(strangers, name=name))
    if problems.has_errors:
        return None
    return HeldOut(
        name=name,
        images=tuple(images),
        questions=tuple(questions),
        portrait_prompt=folder.named("A photo of <sks>."),
        is_derived=True,
        source=reader.source,
    )


LAYOUT = Layout(name="yollava", is_root=is_root, places=names, read=read, held_out=read_held_out)
"""Yo'LLaVA's data set and folders shaped like it."""
