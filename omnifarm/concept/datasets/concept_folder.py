"""What the layouts of the UnifyBench family share: a concept with a folder of training pictures and one of test pictures.

UnifyBench, Yo'LLaVA, MC-LLaVA and Yo'Chameleon differ in where things lie and in what their JSON files are called.
Each layout's module says that; reading, checking and naming what was found is done here, once.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from omnifarm.concept.datasets.foreign_json import ForeignPaths, Record, records
from omnifarm.concept.datasets.held_out import HeldOutKind, HeldOutQuestion
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader, check_photographs, is_photo, natural, refuse_shared
from omnifarm.concept.spec import QA, ConceptImage, ConceptSpec, Negative, NegativeKind, name_problem, normalise_text
from omnifarm.errors import ConceptError

QAFileKind = Literal["vqa", "text", "yes", "no"]
"""What the questions of a file are: about pictures, about the concept as such, recognition of either answer."""

# UnifyBench is known to say "human"; the other words are ours.
_GROUPS = {"human": "person", "person": "person", "pet": "pet", "object": "object"}
# What the general prompts are chosen by; whoever is alive and no person is a pet.
_GENERATION_GROUPS = {"object": "object", "live_subject": "pet"}


class ConceptFolder:
    """Reads the parts of one concept; `problems` is the only thing that changes.

    Args:
        reader: Over the root of the set.
        name: The concept's name, whatever a display name says.
        folder: Its training pictures.
        test_folder: Its test pictures.
        problems: Filled with everything found wrong.
        roots: See `ForeignPaths`.
        test_roots: The same for the files of test pictures.
        concepts: Names of all concepts of the set.
    """

    def __init__(
        self,
        reader: Reader,
        name: str,
        *,
        folder: str,
        test_folder: str,
        problems: Problems,
        roots: Iterable[str] = (),
        test_roots: Iterable[str] = (),
        concepts: Iterable[str] = (),
    ) -> None:
        self.reader, self.name, self.problems = reader, name, problems
        self.folder, self.test_folder = folder, test_folder
        self.paths = reader.source.paths()
        self.own = [path for path in self.paths if path.startswith(f"{folder}/")]
        self.foreign = ForeignPaths(self.paths, folder=folder, roots=roots)
        self.foreign_test = ForeignPaths(self.paths, folder=test_folder, roots=test_roots)
        self.concepts = tuple(concepts)

    def is_usable(self) -> bool:
        """Return whether the concept has a name and files; say what is missing."""
        if (reason := name_problem(self.name)) is not None:
            self.problems.error(self.folder, reason, consumer="the identifier in texts", fix="rename the folder")
            return False
        if not self.own:
            self.problems.error(
                self.folder,
                "is listed in concepts_list.json but does not exist",
                consumer="everything that is learned",
                fix="add the folder or take the name off the list",
            )
            return False
        return True

    def json(self, path: str, *, consumer: str) -> Any:
        """Return a JSON file's value; None, with a problem, when it cannot be read."""
        try:
            return self.reader.json(path)
        except ConceptError as error:
            self.complain(path, error, consumer)
            return None

    def complain(self, path: str, error: ConceptError, consumer: str) -> None:
        """Add an error about a file as a problem."""
        what, fix = str(error.facts.get("what", error.message)), str(error.facts.get("fix", "mend the file"))
        self.problems.error(path, what, consumer=consumer, fix=fix)

    def named(self, text: str) -> str:
        """Return a text that calls the concept by its identifier."""
        return normalise_text(text, name=self.name)

    def photographs(self, *, within: str) -> list[str]:
        """Return the pictures that lie directly in a folder, masks left out, in the order of their numbers."""
        inside = f"{within}/"
        direct = [path for path in self.paths if path.startswith(inside) and "/" not in path[len(inside) :]]
        return sorted(filter(is_photo, direct), key=natural)

    def images(self, paths: Sequence[str], *, captions: Mapping[str, str] | None = None) -> list[ConceptImage]:
        """Check the photographs that are learned; `captions` go by file name."""
        captions = captions or {}
        images = self.reader.images(paths, problems=self.problems, consumer="everything that is learned")
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

    def test_images(self, *, problems: Problems | None = None) -> list[ConceptImage]:
        """Check the held-out photographs."""
        problems = self.problems if problems is None else problems
        return self.reader.images(self.photographs(within=self.test_folder), problems=problems, consumer="scoring")

    def negatives(self, folders: Iterable[tuple[str, NegativeKind]]) -> list[Negative]:
        """Check the pictures of folders that do not show the concept."""
        consumer = "saying No when the concept is not in a picture"
        found = []
        for folder, kind in folders:
            paths = sorted(
                (path for path in self.paths if path.startswith(f"{folder}/") and is_photo(path)), key=natural
            )
            images = self.reader.images(paths, problems=self.problems, consumer=consumer)
            found += [Negative(image=image, kind=kind) for image in images]
        return found

    def questions(self, files: Iterable[tuple[str, QAFileKind]]) -> list[QA]:
        """Read files of questions to learn from."""
        found = []
        for path, kind in files:
            for record in self.records(path, consumer="answering questions"):
                qa = self.question(record, kind, path)
                found += [] if qa is None else [qa]
        return found

    def records(self, path: str, *, consumer: str) -> list[Record]:
        """Return the questions of a file as found; none, with a problem, when it cannot be read."""
        try:
            return records(self.reader.json(path), concept=self.name, concepts=self.concepts)
        except ConceptError as error:
            self.complain(path, error, consumer)
            return []

    def question(self, record: Record, kind: QAFileKind, path: str) -> QA | None:
        """Turn a record into a question to learn from; None, with a problem, when it cannot be one."""
        consumer = "answering questions" if kind in ("vqa", "text") else "recognition"
        texts = self.texts(record, path, consumer)
        if texts is None:
            return None
        question, answer = texts
        if not record.image or kind == "text" or is_blank(record.image):
            return QA(question=question, answer=answer, kind="text") if kind in ("vqa", "text") else None
        image = self.picture(record.image, path, self.foreign, consumer)
        if image is None:
            return None
        if kind == "vqa":
            return QA(question=question, answer=answer, image=image, kind="vqa")
        return QA(question=question, answer=decided(answer, says_yes=kind == "yes"), image=image, kind="recognition")

    def held_out_question(self, record: Record, kind: HeldOutKind, path: str) -> HeldOutQuestion | None:
        """Turn a record into a question that is scored; None, with a problem, when it cannot be one."""
        texts = self.texts(record, path, "scoring")
        if texts is None:
            return None
        question, answer = texts
        options = tuple((letter, self.named(words)) for letter, words in record.options)
        if kind == "recognition":
            # The public scripts compare with "No." and take anything else as a Yes.
            answer = "No" if answer.lower().startswith("no") else "Yes"
        image = None
        if kind != "text" and record.image and not is_blank(record.image):
            image = self.picture(record.image, path, self.foreign_test, "scoring")
            if image is None:
                return None
        return HeldOutQuestion(kind=kind, question=question, answer=answer, image=image, options=options)

    def texts(self, record: Record, path: str, consumer: str) -> tuple[str, str] | None:
        """Return question and answer, naming the concept; None, with a warning, when one is empty."""
        question, answer = self.named(record.question.replace("<image>", " ")), self.named(record.answer)
        if question and answer:
            return question, answer
        self.problems.warn(
            path,
            f"has an entry without question or answer ({record.image or 'no picture'})",
            consumer=consumer,
            fix="complete or delete it",
        )
        return None

    def picture(self, file: str, where: str, foreign: ForeignPaths, consumer: str) -> ConceptImage | None:
        """Check a picture that a file names; None, with a problem, when it is not there."""
        path = foreign.resolve(file)
        if path is None:
            self.problems.error(
                where,
                f"names the picture {file!r}, which does not exist",
                consumer=consumer,
                fix="add the picture or delete the entry",
            )
            return None
        return self.reader.image(path, problems=self.problems, consumer=consumer)

    def spec(self, info: Mapping[str, Any], **parts: Any) -> ConceptSpec | None:
        """Put the parts together and refuse what is also held out.

        Args:
            info: `class`, `info`, `extra_info`, `conversation_type` and `generation_type` as UnifyBench's info.json
                names them.
            **parts: Further fields of `ConceptSpec`.

        Returns:
            The concept, or None when there are errors.
        """
        if self.problems.has_errors:
            return None
        extra = info.get("extra_info") or []
        spec = ConceptSpec(
            name=self.name,
            class_noun=str(info["class"]).strip(),
            info=self.named(str(info.get("info") or "")),
            extra_info=tuple(self.named(one) for one in extra if isinstance(one, str) and one.strip()),
            group=_GROUPS.get(str(info.get("conversation_type")))
            or _GENERATION_GROUPS.get(str(info.get("generation_type")), ""),
            source=self.reader.source,
            **parts,
        )
        refuse_shared(
            (one.image for one in spec.negatives),
            others={image.digest: image.path for image in spec.images},
            what="which shows the concept",
            problems=self.problems,
        )
        held_out = {image.digest: image.path for image in self.test_images(problems=Problems())}
        refuse_shared(spec.all_images(), others=held_out, what="which is held out for scoring", problems=self.problems)
        return None if self.problems.has_errors else spec

    def checked_info(self, info: Any, *, where: str, fix: str) -> dict[str, Any]:
        """Return a concept's description if it names a class; else add a problem and return nothing."""
        if isinstance(info, str):
            info = {"class": info}
        if not isinstance(info, dict) or not isinstance(info.get("class"), str) or not info["class"].strip():
            self.problems.error(
                where,
                'must be an object with a `class` such as "dog"',
                consumer="captions, questions and edits",
                fix=fix,
            )
            return {}
        if not isinstance(info.get("extra_info") or [], list):
            self.problems.error(
                where,
                "extra_info must be a list of sentences",
                consumer="questions about facts",
                fix="put the sentences in a list",
            )
        return info

    def info_of_set(self) -> dict[str, Any]:
        """Return the concept's description from `classes.json`, our addition to sets that name no classes."""
        path = "classes.json"
        skeleton = '{"%s": "dog"}' % self.name  # noqa: UP031
        fix = f"write {path} at the root of the set, such as {skeleton}, or with more: " + (
            '{"%s": {"class": "dog", "info": "...", "extra_info": ["..."]}}' % self.name  # noqa: UP031
        )
        if path not in self.paths:
            self.problems.error(
                path,
                f"does not exist, and this layout does not say what {self.name!r} is",
                consumer="captions, questions and edits",
                fix=fix,
            )
            return {}
        values = self.json(path, consumer="captions, questions and edits")
        if values is None:
            return {}
        entry = values.get(self.name) if isinstance(values, dict) else None
        return self.checked_info(entry, where=f"{path}: {self.name}", fix=fix)


def is_blank(path: str) -> bool:
    """Return whether a picture is the black one that text-only questions of this family point at."""
    return path.replace("\\", "/").rpartition("/")[2].startswith("black_")


def decided(answer: str, *, says_yes: bool) -> str:
    """Return a recognition answer that begins with Yes or No: scorers look for the word, half the public ones lack it."""
    word = "Yes" if says_yes else "No"
    if re.match(rf"{word}\b", answer, re.IGNORECASE):
        return word + answer[len(word) :]
    keeps_capital = answer.startswith(("<", "I ", "I'"))
    return f"{word}, {answer if keeps_capital else answer[:1].lower() + answer[1:]}"
