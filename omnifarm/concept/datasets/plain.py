"""The plain layout: a folder with `concept.yaml` and photographs, written by hand in two minutes.

    maeve/
      concept.yaml        class: dog          (all that is required)
      images/*.jpg        or beside concept.yaml
      negatives/*.jpg     optional: lookalikes that are not maeve; negatives/easy/ for anything else
      test/*.jpg          optional: held out; never learned from, refused if it repeats a photograph

Optional keys of concept.yaml: name, group, info, extra_info (list), qa (list of {question, answer, image}; with
`kind: recognition` for a Yes or No about a picture), captions ({file: text}), negatives (list of files or a folder),
edits (list of {source, target, instruction}).
A folder of such folders is a set. A concept of a set that has no negatives borrows the others' photographs.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from omnifarm.concept.datasets.layout import Layout
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import (
    Reader,
    check_pair,
    check_photographs,
    is_mask,
    is_other_picture,
    is_photo,
    natural,
    refuse_shared,
    suggestion,
)
from omnifarm.concept.sources import FileSource, below
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

FILE_NAMES = ("concept.yaml", "concept.yml")
"""A folder that holds one of these is a concept."""
KEYS = ("class", "name", "group", "info", "extra_info", "qa", "captions", "negatives", "edits")
"""Keys of concept.yaml."""
GROUPS = ("person", "pet", "object")
"""Values of `group`."""

_QA_KEYS = ("question", "answer", "image", "kind")
_EDIT_KEYS = ("source", "target", "instruction")
_MAX_TEXT = 4000


def folders(source: FileSource) -> list[str]:
    """Return the folders that hold a concept, relative to the source; "" is the source itself."""
    found = {path.rpartition("/")[0] for path in source.paths() if path.rpartition("/")[2] in FILE_NAMES}
    return sorted(found, key=natural)


def read(reader: Reader, folder: str, problems: Problems) -> ConceptSpec | None:
    """Read one concept folder.

    Args:
        reader: Over the source that holds the folder.
        folder: Relative path, "" for the source itself.
        problems: Filled with everything found wrong.

    Returns:
        The concept, or None when `problems` holds an error.
    """
    prefix = f"{folder}/" if folder else ""
    own = below(reader.source.paths(), prefix)
    settings_path = next((prefix + name for name in FILE_NAMES if prefix + name in own), "")
    values = _settings(reader, settings_path, problems)
    return _Folder(reader=reader, prefix=prefix, file=settings_path, problems=problems).read(values, folder)


def folder_name(reader: Reader, folder: str) -> str:
    """Return the name of the folder itself, the concept's name unless concept.yaml says otherwise."""
    return folder.rpartition("/")[2] or reader.source.url.rstrip("/").rpartition("/")[2]


def _settings(reader: Reader, path: str, problems: Problems) -> dict[str, Any]:
    consumer = "everything that is learned"
    try:
        values = yaml.safe_load(reader.text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error)
        problems.error(path, f"is not YAML{line}: {reason}", consumer=consumer, fix="mend that line")
        return {}
    except (ConceptError, RecursionError, ValueError) as error:
        # ValueError: a date that does not exist, a number of thousands of digits.
        problems.error(path, str(error), consumer=consumer, fix="save it as a small UTF-8 text, words in quotes")
        return {}
    if not isinstance(values, dict):
        problems.error(
            path,
            f"must hold `key: value` lines, found {_kind(values)}",
            consumer=consumer,
            fix="write at least `class: dog`",
        )
        return {}
    for key in values:
        if key not in KEYS:
            problems.error(
                path, f"unknown key {str(key)!r}", consumer="nothing reads it", fix=suggestion(str(key), KEYS)
            )
    return values


class _Folder:
    """Reads the parts of one folder; `problems` is the only thing that changes."""

    def __init__(self, *, reader: Reader, prefix: str, file: str, problems: Problems) -> None:
        self.reader, self.prefix, self.file, self.problems = reader, prefix, file, problems
        self.folder = folder_name(reader, prefix.rstrip("/"))
        self.name = self.folder
        self.files = below(reader.source.paths(), prefix)

    def read(self, values: Mapping[str, Any], folder: str) -> ConceptSpec | None:
        problems = self.problems
        self.name = self.text(values.get("name"), "name", consumer="the identifier in texts") or self.folder
        if (reason := name_problem(self.name)) is not None:
            problems.error(
                self.file, reason, consumer="the identifier in texts", fix="set `name:` or rename the folder"
            )
            self.name = "concept"
        problems.concept = self.name
        class_noun = self.text(values.get("class"), "class", consumer="captions, questions and edits")
        if not class_noun and not any(problem.where == self.file for problem in problems.found):
            problems.error(
                self.file,
                "must say what the concept is, found no `class`",
                consumer="captions, questions and edits",
                fix="add a line such as `class: dog`",
            )
        group = self.text(values.get("group"), "group", consumer="choosing edits and scores")
        if group and group not in GROUPS:
            problems.error(
                self.file,
                f"group must be one of {', '.join(GROUPS)}, found {group!r}",
                consumer="choosing edits and scores",
                fix=suggestion(group, GROUPS),
            )
        info = self.named(self.text(values.get("info"), "info", consumer="questions about looks"))
        extra_info = tuple(
            self.named(self.text(one, f"extra_info[{index}]", consumer="questions about facts"))
            for index, one in enumerate(self.items(values.get("extra_info"), "extra_info", "questions about facts"))
        )
        images = self.photographs(values.get("captions"))
        negatives = self.negatives(values.get("negatives"))
        qa = tuple(self.qa(values.get("qa")))
        edits = tuple(self.edits(values.get("edits"), class_noun))
        refuse_shared(
            (one.image for one in negatives),
            others={image.digest: image.path for image in images},
            what="which shows the concept",
            problems=problems,
        )
        learned = [*images, *(one.image for one in negatives), *(one.image for one in qa if one.image is not None)]
        learned += [picture for edit in edits for picture in (edit.source, edit.target)]
        refuse_shared(
            {image.digest: image for image in learned}.values(),
            others=self.held_out(),
            what="which is held out for trying the concept out",
            problems=problems,
        )
        if problems.has_errors:
            return None
        return ConceptSpec(
            name=self.name, class_noun=class_noun, images=tuple(images), info=info, extra_info=tuple(filter(None, extra_info)),
            qa=qa, negatives=tuple(negatives), edits=edits, group=group, source=self.reader.source,
        )  # fmt: skip

    def photographs(self, captions: object) -> list[ConceptImage]:
        consumer = "everything that is learned"
        inside = f"{self.prefix}images/"
        paths = [path for path in self.files if path.startswith(inside) or "/" not in path[len(self.prefix) :]]
        for path in paths:
            if is_other_picture(path):
                self.problems.error(
                    path,
                    "is in a format that is not read",
                    consumer=consumer,
                    fix="export it as JPEG or PNG, or move it away",
                )
        images = self.reader.images(
            sorted(filter(is_photo, paths), key=natural), problems=self.problems, consumer=consumer
        )
        check_photographs(images, where=self.prefix or self.reader.source.url, problems=self.problems)
        texts = self.mapping(captions, "captions", consumer="drawing")
        by_path = {
            self.locate(file) or file: self.named(self.text(text, f"captions[{file}]", consumer="drawing"))
            for file, text in texts.items()
        }
        known = {image.path for image in images}
        for path in by_path:
            if path not in known:
                self.problems.error(
                    self.file,
                    f"captions name {path!r}, which is none of the photographs",
                    consumer="drawing",
                    fix="name a file of images/",
                )
        return [
            ConceptImage(path=image.path, digest=image.digest, size=image.size, caption=by_path.get(image.path, ""))
            for image in images
        ]

    def negatives(self, given: object) -> list[Negative]:
        consumer = "saying No when the concept is not in a picture"
        folder = given if isinstance(given, str) else "negatives"
        if isinstance(given, list):
            listed = [self.picture_path(one, f"negatives[{i}]", consumer) for i, one in enumerate(given)]
            paths = [path for path in listed if path is not None]
        else:
            inside = f"{self.prefix}{folder.strip('/')}/"
            paths = sorted((path for path in self.files if path.startswith(inside) and is_photo(path)), key=natural)
            if isinstance(given, str) and not paths:
                self.problems.error(
                    self.file,
                    f"negatives names the folder {given!r}, which holds no pictures",
                    consumer=consumer,
                    fix="check the folder's name",
                )
        images = self.reader.images(paths, problems=self.problems, consumer=consumer)
        return [Negative(image=image, kind="easy" if "/easy/" in f"/{image.path}" else "hard") for image in images]

    def held_out(self) -> dict[str, str]:
        inside = f"{self.prefix}test/"
        paths = [path for path in self.files if path.startswith(inside) and is_photo(path)]
        pictures = self.reader.images(paths, problems=Problems(), consumer="trying the concept out")
        return {image.digest: image.path for image in pictures}

    def qa(self, given: object) -> list[QA]:
        consumer = "answering questions"
        found = []
        for index, one in enumerate(self.items(given, "qa", consumer)):
            where = f"qa[{index}]"
            values = self.mapping(one, where, consumer=consumer)
            self.known(values, _QA_KEYS, where, consumer)
            question, answer = (self.required(values, key, where, consumer) for key in ("question", "answer"))
            image = None
            if values.get("image") is not None:
                image = self.picture(values["image"], where, consumer)
            kind: QAKind = "text" if image is None else "vqa"
            if values.get("kind") is not None:
                is_decided = image is not None and answer.lower().startswith(("yes", "no"))
                if values["kind"] != "recognition" or not is_decided:
                    self.problems.error(
                        self.file,
                        f"{where}: kind may be recognition, of a pair with an image and an answer that begins with Yes or No",
                        consumer="recognition",
                        fix="leave `kind` out, or complete the pair",
                    )
                    continue
                kind = "recognition"
            if question and answer:
                found.append(QA(question=question, answer=answer, image=image, kind=kind))
        return found

    def edits(self, given: object, class_noun: str) -> list[EditPair]:
        consumer = "learning edits"
        found = []
        for index, one in enumerate(self.items(given, "edits", consumer)):
            where = f"edits[{index}]"
            values = self.mapping(one, where, consumer=consumer)
            self.known(values, _EDIT_KEYS, where, consumer)
            source = self.picture(values.get("source"), f"{where}.source", consumer)
            target = self.picture(values.get("target"), f"{where}.target", consumer)
            asked = self.named(self.text(values.get("instruction"), f"{where}.instruction", consumer=consumer))
            if source is None or target is None:
                continue
            pair = EditPair(
                source=source, target=target, instruction=asked or f"remove <{self.name}>: {class_noun} from the photo"
            )
            check_pair(pair, where=f"{self.file}: {where}", problems=self.problems)
            found.append(pair)
        return found

    def picture(self, file: object, where: str, consumer: str) -> ConceptImage | None:
        path = self.picture_path(file, where, consumer)
        return None if path is None else self.reader.image(path, problems=self.problems, consumer=consumer)

    def picture_path(self, file: object, where: str, consumer: str) -> str | None:
        path = self.locate(file) if isinstance(file, str) else None
        if path is None or is_mask(path):
            self.problems.error(
                self.file,
                f"{where} must name a picture in this folder, found {file!r}",
                consumer=consumer,
                fix="check the file name",
            )
            return None
        return path

    def locate(self, file: str) -> str | None:
        """Return the path of a file named relative to the folder or to its images/."""
        for candidate in (f"{self.prefix}{file}", f"{self.prefix}images/{file}"):
            if candidate in self.files:
                return candidate
        return None

    def required(self, values: Mapping[str, Any], key: str, where: str, consumer: str) -> str:
        text = self.named(self.text(values.get(key), f"{where}.{key}", consumer=consumer))
        if not text and values.get(key) in (None, ""):
            article = "an" if key == "answer" else "a"
            self.problems.error(
                self.file, f"{where} must have {article} {key}, found none", consumer=consumer, fix="add it"
            )
        return text

    def named(self, text: str) -> str:
        return normalise_text(text, name=self.name, folder=self.folder)

    def text(self, value: object, where: str, *, consumer: str) -> str:
        if value is None:
            return ""
        # YAML reads `answer: yes` and `answer: 7` as other things than text.
        if isinstance(value, bool | int | float):
            hint = f"{value!r}; put quotes around it"
        elif not isinstance(value, str):
            hint = _kind(value)
        elif len(value) > _MAX_TEXT:
            hint = f"{len(value)} characters, at most {_MAX_TEXT} are read"
        else:
            return value.strip()
        self.problems.error(
            self.file,
            f"{where} must be text, found {hint}",
            consumer=consumer,
            fix=f"write {where} as one sentence in quotes",
        )
        return ""

    def items(self, value: object, where: str, consumer: str) -> list[Any]:
        if value is None or isinstance(value, list):
            return value or []
        self.problems.error(
            self.file,
            f"{where} must be a list, found {_kind(value)}",
            consumer=consumer,
            fix=f"write each entry of {where} on a line beginning with `- `",
        )
        return []

    def mapping(self, value: object, where: str, *, consumer: str) -> dict[str, Any]:
        if value is None:
            return {}
        if isinstance(value, dict):
            return {str(key): one for key, one in value.items()}
        self.problems.error(
            self.file,
            f"{where} must be `key: value` lines, found {_kind(value)}",
            consumer=consumer,
            fix="see the example in the documentation",
        )
        return {}

    def known(self, values: Mapping[str, Any], keys: tuple[str, ...], where: str, consumer: str) -> None:
        for key in values:
            if key not in keys:
                self.problems.error(
                    self.file, f"{where}: unknown key {key!r}", consumer=consumer, fix=suggestion(key, keys)
                )


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "a line of text" if isinstance(value, str) else f"{type(value).__name__} {value!r}"


LAYOUT = Layout(
    name="plain",
    is_root=lambda source: bool(folders(source)),
    places=lambda reader: folders(reader.source),
    read=read,
    concept_name=folder_name,
)
"""Folders written by hand."""
