"""MC-LLaVA's layout: characters of films, several to a scene, with masks and no class nouns.

    <root>/<scenes>/concept/train/<c>/0.png ..      the concept; 0_mask.png and the like are left out
    <root>/<scenes>/concept/test/<c>/0.png ..       held out, with vqa.json, choice.json (about pictures) and qa.json
    <root>/<scenes>/multi/<a>_<b>/                  held out: scenes of several concepts; names who stand together
    <root>/<any folder>/<c>/conversation.json       questions; trained without their picture, so read as text
    <root>/<any folder>/<c>/recognition_*.json      recognition questions, `recognition_negative_<other>.json` too
    <root>/random-images/                           pictures without any of them (also random_images/)
    <root>/classes.json                             {"Alex": "lion", ...} (ours: the data names no classes)

`<scenes>` is `two_concept` or `three_concept`; one of these alone is read as well. The README has the labels of
vqa.json and qa.json the wrong way round; what its code does with them is what is done here.
"""

from omnifarm.concept.datasets import yollava
from omnifarm.concept.datasets.concept_folder import ConceptFolder, QAFileKind
from omnifarm.concept.datasets.held_out import HeldOut, HeldOutKind, HeldOutQuestion
from omnifarm.concept.datasets.layout import Layout
from omnifarm.concept.datasets.unifybench_held_out import derived_recognition, shuffled
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader, is_photo, natural
from omnifarm.concept.sources import FileSource
from omnifarm.concept.spec import ConceptSpec, Negative

JOINT_NEGATIVES_PER_CONCEPT = 10
"""Photographs of each concept of the same scene that serve as hard negatives, as the authors train."""

_TRAIN = "concept/train/"
_QA_FILES: tuple[tuple[str, QAFileKind], ...] = (
    ("conversation*.json", "text"),
    ("recognition_positive*.json", "yes"),
    ("recognition_negative*.json", "no"),
    ("recognition_strong_negative*.json", "no"),
)
_TEST_FILES: tuple[tuple[str, HeldOutKind], ...] = (("vqa.json", "vqa"), ("choice.json", "choice"), ("qa.json", "text"))


def is_root(source: FileSource) -> bool:
    """Return whether a source is the root of this layout, or one of its folders of scenes."""
    paths = source.paths()
    has_info = any(path.startswith(_TRAIN) and path.endswith("/info.json") for path in paths)
    scenes = {path.partition(_TRAIN)[0] for path in paths if _TRAIN in path}
    return any(scene and scene.count("/") == 1 for scene in scenes) or (
        "" in scenes and not has_info and any(path.startswith("multi/") for path in paths)
    )


def places(reader: Reader) -> list[str]:
    """Return the training folders of all concepts, by name."""
    found = {path.rpartition("/")[0] for path in reader.source.paths() if _TRAIN in path and is_photo(path)}
    return sorted((path for path in found if path.rpartition("/")[0].endswith("concept/train")), key=natural)


def concept_name(reader: Reader, place: str) -> str:
    """Return the concept's name, the last part of its folder."""
    return place.rpartition("/")[2]


def read(reader: Reader, place: str, problems: Problems) -> ConceptSpec | None:
    """Read one concept; `place` is its training folder."""
    folder = _concept_folder(reader, place, problems)
    if not folder.is_usable():
        return None
    info = folder.info_of_set()
    images = folder.images(folder.photographs(within=place))
    joint = [
        path
        for friend in _friends(reader, place)
        for path in folder.photographs(within=friend)[:JOINT_NEGATIVES_PER_CONCEPT]
    ]
    consumer = "telling apart who stand together"
    hard = reader.images(joint, problems=problems, consumer=consumer)
    negatives = [Negative(image=image, kind="hard") for image in hard]
    negatives += folder.negatives((("random-images", "easy"), ("random_images", "easy")))
    qa = folder.questions(yollava.question_files(folder, _QA_FILES))
    return folder.spec(info, images=tuple(images), negatives=tuple(negatives), qa=tuple(qa))


def read_held_out(reader: Reader, place: str, problems: Problems) -> HeldOut | None:
    """Read the test pictures of one concept and the questions about them; recognition is derived."""
    folder = _concept_folder(reader, place, problems)
    images = folder.test_images()
    questions: list[HeldOutQuestion] = []
    for file, kind in _TEST_FILES:
        path = f"{folder.test_folder}/{file}"
        for record in folder.records(path, consumer="scoring") if path in folder.paths else ():
            question = folder.held_out_question(record, kind, path)
            questions += [] if question is None else [question]
    _warn_of_joint_questions(folder, _scenes(reader, place))
    # Friends first: telling apart who stand together is what this data set is for.
    friends = [_test_folder(friend) for friend in _friends(reader, place)]
    strangers = [
        path
        for path in folder.paths
        if "/concept/test/" in f"/{path}" and is_photo(path) and not path.startswith(f"{folder.test_folder}/")
    ]
    strangers = shuffled(strangers, name=folder.name)
    strangers.sort(key=lambda path: path.rpartition("/")[0] not in friends)
    questions += derived_recognition(folder, images, strangers)
    if problems.has_errors:
        return None
    return HeldOut(
        name=folder.name,
        images=tuple(images),
        questions=tuple(questions),
        portrait_prompt=folder.named("A photo of <sks>."),
        is_derived=True,
        source=reader.source,
    )


def _concept_folder(reader: Reader, place: str, problems: Problems) -> ConceptFolder:
    return ConceptFolder(
        reader,
        concept_name(reader, place),
        folder=place,
        test_folder=_test_folder(place),
        problems=problems,
        concepts=[concept_name(reader, other) for other in places(reader)],
    )


def _test_folder(place: str) -> str:
    before, _, name = place.rpartition(_TRAIN)
    return f"{before}concept/test/{name}"


def _scenes(reader: Reader, place: str) -> list[str]:
    """Return the folders of the scenes in which this concept stands with others."""
    name, inside = concept_name(reader, place), f"{place.rpartition(_TRAIN)[0]}multi/"
    found = {path[len(inside) :].split("/")[0] for path in reader.source.paths() if path.startswith(inside)}
    return [f"{inside}{scene}" for scene in sorted(found) if name in scene.split("_")]


def _warn_of_joint_questions(folder: ConceptFolder, scenes: list[str]) -> None:
    """Say which questions are left out: those about several concepts at once are nobody's own."""
    for scene in scenes:
        for path in folder.paths:
            if path.startswith(f"{scene}/") and path.endswith(".json"):
                folder.problems.warn(
                    path,
                    "holds questions about several concepts at once, which are not asked",
                    consumer="scoring",
                    fix="nothing; each concept is scored by the questions of its own folder",
                )


def _friends(reader: Reader, place: str) -> list[str]:
    """Return the training folders of the concepts that stand in a scene with this one."""
    name, before = concept_name(reader, place), place.rpartition(_TRAIN)[0]
    scenes = (scene.rpartition("/")[2] for scene in _scenes(reader, place))
    together = {other for scene in scenes for other in scene.split("_")} - {name}
    return [other for other in places(reader) if concept_name(reader, other) in together and other.startswith(before)]


LAYOUT = Layout(
    name="mcllava", is_root=is_root, places=places, read=read, held_out=read_held_out, concept_name=concept_name
)
"""MC-LLaVA's data set and folders shaped like it."""
