"""From uploaded files to a concept folder: what a fine-tuning job is to learn, written where a worker reads it.

    concepts/<name>/<digest>-<bytes>/concept.yaml       the document, photographs named by file; written last
    concepts/<name>/<digest>-<bytes>/images/000.png     and so on

The folder is a copy: files may be deleted after the job was created.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from omnifarm.concept.datasets.load import load_concepts
from omnifarm.errors import ConceptError, RequestError
from omnifarm.store.base import Store
from omnifarm.tenancy import TenantLimits
from serve.copies import erase_copy, folder_of
from serve.errors import MissingError
from serve.json_text import parse_object
from serve.shelf import Shelf

MAX_DOCUMENT_BYTES = 2**20
"""Largest concept document."""

Text = Annotated[str, Field(max_length=4000)]
FileId = Annotated[str, Field(max_length=64, description="Of an uploaded picture.")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class QuestionAnswer(_Part):
    """A question and its answer."""

    question: Text
    answer: Text
    photo: FileId | None = None


class Edit(_Part):
    """An edit to learn from."""

    source: FileId
    target: FileId
    instruction: Text = ""


class ConceptDocument(_Part):
    """What is to be learned: the content of a file with the purpose `fine-tune`."""

    class_noun: Annotated[str, Field(alias="class", min_length=1, max_length=64, examples=["dog"])]
    photos: Annotated[list[FileId], Field(min_length=1, max_length=50, description="They show the concept.")]
    captions: Annotated[dict[FileId, Text], Field(description="What single photos show.")] = Field(default_factory=dict)
    info: Annotated[Text, Field(description="One sentence about its looks.")] = ""
    extra_info: Annotated[list[Text], Field(max_length=100, description="Facts that no photograph shows.")] = Field(
        default_factory=list
    )
    qa: Annotated[list[QuestionAnswer], Field(max_length=500)] = Field(default_factory=list)
    negatives: Annotated[list[FileId], Field(max_length=100, description="Pictures without it.")] = Field(
        default_factory=list
    )
    edits: Annotated[list[Edit], Field(max_length=50)] = Field(default_factory=list)
    group: Literal["", "person", "pet", "object"] = ""

    def file_ids(self) -> dict[str, list[str]]:
        """The pictures it names, by the folder they go to, each once."""
        others = [qa.photo for qa in self.qa if qa.photo]
        others += [picture for edit in self.edits for picture in (edit.source, edit.target)]
        taken = set(self.photos) | set(self.negatives)
        return {
            "images": list(dict.fromkeys(self.photos)),
            "negatives": list(dict.fromkeys(self.negatives)),
            "pictures": [one for one in dict.fromkeys(others) if one not in taken],
        }


def parse_document(data: bytes) -> dict[str, Any]:
    """Return the JSON object in an uploaded concept document.

    Raises:
        RequestError: It is no JSON object, or holds text that is not Unicode.
    """
    return parse_object(data, expected="a concept document (a JSON object)", field="file")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptCopy:
    """A concept folder before it is written."""

    folder: str
    """Where it goes in the tenant's store; follows from everything in it."""
    text: bytes
    """Its concept.yaml."""
    files: Mapping[str, str]
    """Uploaded pictures by their path in the folder."""
    size_bytes: int
    """Of everything in it together."""


def plan_copy(document: ConceptDocument, *, name: str, shelf: Shelf) -> ConceptCopy:
    """Say what a concept folder will hold; writes nothing.

    Args:
        document: What to learn.
        name: The concept's name.
        shelf: Holds the pictures.

    Raises:
        MissingError: The document names a file that the tenant does not have.
        RequestError: It names a file that is no picture.
    """
    files = {
        f"{folder}/{index:03d}.png": file_id
        for folder, ids in document.file_ids().items()
        for index, file_id in enumerate(ids)
    }
    paths = {file_id: path for path, file_id in files.items()}
    for file_id in paths:
        if shelf.get(file_id).purpose != "vision":
            raise RequestError(f"expected {file_id} to be a picture, found a document", field="training_file")
    text = yaml.safe_dump(_plain(document, name=name, paths=paths), allow_unicode=True, sort_keys=True).encode()
    digest, size_bytes = hashlib.sha256(text), len(text)
    # Read twice, for the folder's name and to be copied: all of them together may be more than memory holds.
    for path in sorted(files):
        data = shelf.content(files[path])
        digest.update(path.encode() + hashlib.sha256(data).digest())
        size_bytes += len(data)
    folder = folder_of(name, digest=digest.hexdigest(), size_bytes=size_bytes)
    return ConceptCopy(folder=folder, text=text, files=files, size_bytes=size_bytes)


def write_copy(copy: ConceptCopy, *, shelf: Shelf, store: Store, limits: TenantLimits) -> str:
    """Write a concept folder and check that it can be learned from. Safe to repeat.

    Args:
        copy: As planned.
        shelf: Holds the pictures.
        store: The tenant's own store.
        limits: What the tenant may have.

    Returns:
        The folder's URL.

    Raises:
        MissingError: A picture was deleted meanwhile.
        QuotaError: The copies would be more than the tenant may have.
        ConceptError: The concept cannot be learned, with every reason.
    """
    folder = copy.folder
    folder_url = copy_url(copy, store=store)
    if next(store.list(f"{folder}/concept.yaml", limit=1), None) is not None:
        return folder_url
    if next(store.list(f"{folder}/", limit=1), None) is None:
        shelf.check_room(copy.size_bytes, limits=limits)
    try:
        for path, file_id in copy.files.items():
            store.put(f"{folder}/{path}", shelf.content(file_id))
        store.put(f"{folder}/concept.yaml", copy.text)
        ((_, found),) = load_concepts(folder_url)
        if isinstance(found, ConceptError):
            raise found
    except (ConceptError, MissingError):
        erase_copy(store, folder_url)
        raise
    return folder_url


def copy_url(copy: ConceptCopy, *, store: Store) -> str:
    """Return where a copy lies, or will lie."""
    return f"{store.url.rstrip('/')}/{copy.folder}"


def _plain(document: ConceptDocument, *, name: str, paths: dict[str, str]) -> dict[str, Any]:
    """The document as concept.yaml."""
    values: dict[str, Any] = {"class": document.class_noun, "name": name}
    if document.group:
        values["group"] = document.group
    if document.info:
        values["info"] = document.info
    if document.extra_info:
        values["extra_info"] = document.extra_info
    if document.qa:
        values["qa"] = [
            {"question": qa.question, "answer": qa.answer, **({"image": paths[qa.photo]} if qa.photo else {})}
            for qa in document.qa
        ]
    if document.captions:
        if unknown := sorted(set(document.captions) - set(document.photos)):
            raise RequestError(f"expected captions of the photos, found one of {unknown[0]}", field="training_file")
        values["captions"] = {paths[file_id]: text for file_id, text in document.captions.items()}
    if document.edits:
        values["edits"] = [
            {
                "source": paths[edit.source],
                "target": paths[edit.target],
                **({"instruction": edit.instruction} if edit.instruction else {}),
            }
            for edit in document.edits
        ]
    return values
