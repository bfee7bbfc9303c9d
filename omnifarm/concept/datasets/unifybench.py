"""UnifyBench's layout, read tolerantly: the twenty-concept data set of UniCTokens and folders shaped like it.

    <root>/concepts_list.json                       names (optional)
    <root>/concept/train/<c>/info.json, 0.png ..    the concept
    <root>/concept/train/<c>/conversations.json ..  questions (see `_QA_FILES`)
    <root>/concept/train/<c>/negative_example/      hard negatives
    <root>/random_images/                           easy negatives of all concepts
    <root>/concept/test/<c>/0.png ..                held out; only compared, never learned from
    <root>/omnipbench_edit/train/<c>/pairs.jsonl    edits (ours)

The public files disagree about names and shapes; what is accepted is said where it is read.
"""

import json
from fnmatch import fnmatch
from typing import Any

from omnifarm.concept.datasets.foreign_json import ForeignPaths, Record, records
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader, check_pair, check_photographs, is_photo, natural, refuse_shared
from omnifarm.concept.sources import FileSource
from omnifarm.concept.spec import (
    QA,
    ConceptImage,
    ConceptSpec,
    EditPair,
    Negative,
    QAKind,
    name_problem,
    normalise_text,
)
from omnifarm.errors import ConceptError

TRAIN = "concept/train"
"""Folder of what is learned from."""
TEST = "concept/test"
"""Folder of what is held out."""

_NUMBERED = ("[0-9].*", "[0-9][0-9].*", "[0-9][0-9][0-9].*", "[0-9][0-9][0-9][0-9].*")
_QA_FILES: tuple[tuple[str, str], ...] = (
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
# The public files are known to say "human"; the other words are ours.
_GROUPS = {"human": "person", "person": "person", "pet": "pet", "object": "object"}
_ACCEPTED_EDITS = ("accepted", "auto_pass")


def is_root(source: FileSource) -> bool:
    """Return whether a source is the root of this layout."""
    return any(path.startswith(f"{TRAIN}/") for path in source.paths())


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


def read(reader: Reader, name: str, *, problems: Problems) -> ConceptSpec | None:
    """Read one concept.

    Args:
        reader: Over the root.
        name: Folder under `concept/train`; also the concept's name, whatever a display name says.
        problems: Filled with everything found wrong.

    Returns:
        The concept, or None when `problems` holds an error.
    """
    return _Concept(reader, name, problems).read()


def test_images(reader: Reader, name: str, *, problems: Problems) -> list[ConceptImage]:
    """Return the held-out pictures of a concept, in the order of their numbers."""
    inside = f"{TEST}/{name}/"
    paths = [path for path in reader.source.paths() if path.startswith(inside) and "/" not in path[len(inside) :]]
    return reader.images(sorted(filter(is_photo, paths), key=natural), problems=problems, consumer="scoring")


class _Concept:
    def __init__(self, reader: Reader, name: str, problems: Problems) -> None:
        self.reader, self.name, self.problems = reader, name, problems
        self.folder = f"{TRAIN}/{name}"
        self.paths = reader.source.paths()
        self.own = [path for path in self.paths if path.startswith(f"{self.folder}/")]
        self.foreign = ForeignPaths(self.paths, folder=self.folder)

    def read(self) -> ConceptSpec | None:
        problems = self.problems
        consumer = "everything that is learned"
        if (reason := name_problem(self.name)) is not None:
            problems.error(self.folder, reason, consumer="the identifier in texts", fix="rename the folder")
            return None
        if not self.own:
            problems.error(
                self.folder,
                "is listed in concepts_list.json but does not exist",
                consumer=consumer,
                fix="add the folder or take the name off the list",
            )
            return None
        info = self.info()
        images = self.photographs()
        negatives = self.negatives()
        qa = self.qa()
        edits = self.edits(str(info.get("class", "")))
        self.refuse_leaks(images, negatives, edits)
        if problems.has_errors:
            return None
        extra = info.get("extra_info") or []
        return ConceptSpec(
            name=self.name,
            class_noun=str(info["class"]).strip(),
            images=tuple(images),
            info=self.named(str(info.get("info") or "")),
            extra_info=tuple(self.named(one) for one in extra if isinstance(one, str) and one.strip()),
            qa=tuple(qa),
            negatives=tuple(negatives),
            edits=tuple(edits),
            group=_GROUPS.get(str(info.get("conversation_type")), ""),
            source=self.reader.source,
        )

    def info(self) -> dict[str, Any]:
        path = f"{self.folder}/info.json"
        consumer = "captions, questions and edits"
        try:
            info = self.reader.json(path)
        except ConceptError as error:
            self.complain(path, error, consumer)
            return {}
        if not isinstance(info, dict) or not isinstance(info.get("class"), str) or not info["class"].strip():
            self.problems.error(
                path, 'must be an object with a `class` such as "dog"', consumer=consumer, fix="add the class noun"
            )
            return {}
        if not isinstance(info.get("extra_info") or [], list):
            self.problems.error(
                path,
                "extra_info must be a list of sentences",
                consumer="questions about facts",
                fix="put the sentences in a list",
            )
        return info

    def photographs(self) -> list[ConceptImage]:
        consumer = "everything that is learned"
        listed = self.listed_photographs()
        captions = self.captions()
        images = self.reader.images(listed, problems=self.problems, consumer=consumer)
        check_photographs(images, where=self.folder, problems=self.problems)
        return [
            ConceptImage(
                path=image.path,
                digest=image.digest,
                size=image.size,
                caption=captions.get(image.path.rpartition("/")[2], ""),
            )
            for image in images
        ]

    def listed_photographs(self) -> list[str]:
        path = f"{TRAIN}/train_images.json"
        consumer = "choosing the photographs to learn from"
        if path in self.paths:
            try:
                lists = self.reader.json(path)
            except ConceptError as error:
                self.complain(path, error, consumer)
                return []
            files = lists.get(self.name) if isinstance(lists, dict) else None
            if isinstance(files, list) and all(isinstance(file, str) for file in files):
                found = [(file, self.foreign.resolve(file)) for file in files]
                for file, resolved in found:
                    if resolved is None:
                        self.problems.error(
                            path,
                            f"names {file!r}, which does not exist",
                            consumer=consumer,
                            fix="add the picture or take it off the list",
                        )
                return [resolved for _, resolved in found if resolved is not None]
        numbered = [one for one in self.own if is_photo(one) and self.is_numbered(one)]
        self.problems.warn(
            path,
            f"does not list {self.name!r}",
            consumer=consumer,
            fix=f"nothing, if the {len(numbered)} numbered pictures of {self.folder} are meant",
        )
        return sorted(numbered, key=natural)

    def is_numbered(self, path: str) -> bool:
        file = path[len(self.folder) + 1 :]
        return any(fnmatch(file, pattern) for pattern in _NUMBERED)

    def captions(self) -> dict[str, str]:
        path = f"{self.folder}/captions.json"
        if path not in self.paths:
            return {}
        try:
            values = self.reader.json(path)
        except ConceptError as error:
            self.complain(path, error, "drawing")
            return {}
        if not isinstance(values, dict):
            return {}
        return {
            file.replace("\\", "/").rpartition("/")[2]: self.named(text)
            for file, text in values.items()
            if isinstance(text, str)
        }

    def negatives(self) -> list[Negative]:
        consumer = "saying No when the concept is not in a picture"
        found = []
        for folder, kind in (
            (f"{self.folder}/negative_example", "hard"),
            (f"{self.folder}/negative", "hard"),
            ("random_images", "easy"),
        ):
            paths = sorted(
                (path for path in self.paths if path.startswith(f"{folder}/") and is_photo(path)), key=natural
            )
            images = self.reader.images(paths, problems=self.problems, consumer=consumer)
            found += [Negative(image=image, kind="hard" if kind == "hard" else "easy") for image in images]
        return found

    def qa(self) -> list[QA]:
        found = []
        for path in self.own:
            file = path[len(self.folder) + 1 :]
            kind = next((kind for pattern, kind in _QA_FILES if fnmatch(file, pattern)), None)
            if kind is None:
                continue
            try:
                pairs = records(self.reader.json(path), concept=self.name)
            except ConceptError as error:
                self.complain(path, error, "answering questions")
                continue
            found += [qa for record in pairs if (qa := self.pair(record, kind, path)) is not None]
        return found

    def pair(self, record: Record, kind: str, path: str) -> QA | None:
        consumer = "answering questions" if kind in ("vqa", "text") else "recognition"
        question = self.named(record.question.replace("<image>", " "))
        answer = self.named(record.answer)
        if not question or not answer:
            self.problems.warn(
                path,
                f"has an entry without question or answer ({record.image or 'no picture'})",
                consumer=consumer,
                fix="complete or delete it",
            )
            return None
        # Text-only questions of this data set point at a black picture.
        is_about_picture = (
            record.image
            and kind != "text"
            and not record.image.replace("\\", "/").rpartition("/")[2].startswith("black_")
        )
        if not is_about_picture:
            return QA(question=question, answer=answer, kind="text") if kind in ("vqa", "text") else None
        resolved = self.foreign.resolve(record.image)
        if resolved is None:
            self.problems.error(
                path,
                f"names the picture {record.image!r}, which does not exist",
                consumer=consumer,
                fix="add the picture or delete the entry",
            )
            return None
        image = self.reader.image(resolved, problems=self.problems, consumer=consumer)
        if image is None:
            return None
        as_kind: QAKind = "vqa"
        if kind in ("yes", "no"):
            as_kind, answer = "recognition", _decided(answer, says_yes=kind == "yes")
        return QA(question=question, answer=answer, image=image, kind=as_kind)

    def edits(self, class_noun: str) -> list[EditPair]:
        path = f"omnipbench_edit/train/{self.name}/pairs.jsonl"
        if path not in self.paths:
            return []
        consumer = "learning edits"
        found = []
        for number, line in enumerate(self.reader.text(path).splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                values = json.loads(line)
                checked = values.get("qc", {}).get("status", "accepted")
                files = [str(values["source"]), str(values["target"])]
            except (json.JSONDecodeError, AttributeError, KeyError) as error:
                self.problems.error(
                    where,
                    f"must be an object with source and target ({error})",
                    consumer=consumer,
                    fix="mend or delete the line",
                )
                continue
            if checked not in _ACCEPTED_EDITS:
                continue
            images = [self.edit_image(file, where, consumer) for file in files]
            if images[0] is None or images[1] is None:
                continue
            asked = (
                self.named(str(values.get("instruction") or "")) or f"remove <{self.name}>: {class_noun} from the photo"
            )
            pair = EditPair(source=images[0], target=images[1], instruction=asked)
            check_pair(pair, where=where, problems=self.problems)
            found.append(pair)
        return found

    def edit_image(self, file: str, where: str, consumer: str) -> ConceptImage | None:
        beside = f"omnipbench_edit/train/{self.name}/{file}"
        path = beside if beside in self.paths else self.foreign.resolve(file)
        if path is None:
            self.problems.error(
                where,
                f"names {file!r}, which does not exist",
                consumer=consumer,
                fix="add the picture or delete the line",
            )
            return None
        return self.reader.image(path, problems=self.problems, consumer=consumer)

    def refuse_leaks(self, images: list[ConceptImage], negatives: list[Negative], edits: list[EditPair]) -> None:
        own = {image.digest: image.path for image in images}
        refuse_shared(
            (one.image for one in negatives), others=own, what="which shows the concept", problems=self.problems
        )
        held_out = {image.digest: image.path for image in test_images(self.reader, self.name, problems=Problems())}
        learned = [*images, *(edit.source for edit in edits)]
        refuse_shared(learned, others=held_out, what="which is held out for scoring", problems=self.problems)

    def named(self, text: str) -> str:
        return normalise_text(text, name=self.name)

    def complain(self, path: str, error: ConceptError, consumer: str) -> None:
        facts = error.facts
        self.problems.error(
            path, str(facts.get("what", error.message)), consumer=consumer, fix=str(facts.get("fix", "mend the file"))
        )


def _decided(answer: str, *, says_yes: bool) -> str:
    """Return a recognition answer that begins with Yes or No: scorers look for the word, half the public ones lack it."""
    word = "Yes" if says_yes else "No"
    if answer.lower().startswith(word.lower()):
        return word + answer[len(word) :]
    return f"{word}, {answer if answer.startswith('<') else answer[:1].lower() + answer[1:]}"
