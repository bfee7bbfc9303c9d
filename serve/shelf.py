"""Uploaded files of one tenant: photographs and concept documents, waiting to be learned from.

files/<file id>/content-<bytes>    a re-encoded picture, or a JSON text; its name tells its size, so that room is counted
                                   by listing, without reading anything
files/<file id>/file.json          written last: a file without it does not exist
"""

import json
import re
import secrets
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast

from omnifarm.clock import Clock
from omnifarm.errors import NotFoundError
from omnifarm.store.base import Store
from omnifarm.tenancy import TenantLimits
from serve.copies import copied_bytes
from serve.errors import MissingError, QuotaError

PREFIX = "files/"
"""Keys of all files begin with this."""
Purpose = Literal["vision", "fine-tune"]
"""vision: a photograph. fine-tune: a concept document."""

_RECORD = "/file.json"
_CONTENT = re.compile(rf"({PREFIX}[^/]+)/content-([0-9]+)")
_FILE_ID = re.compile(r"file-[0-9a-f]{24}")
_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """What is known of an uploaded file."""

    file_id: str
    """`file-` and 24 hex digits."""
    filename: str
    """As the client called it; never used as a path."""
    purpose: Purpose
    """What it is for."""
    media_type: str
    """`image/png` or `application/json`."""
    size_bytes: int
    """Bytes as stored."""
    created_at_s: float
    """Seconds since the epoch."""

    def encode(self) -> bytes:
        """Return the record as UTF-8 JSON."""
        return json.dumps({"schema_version": _SCHEMA_VERSION, **asdict(self)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the record in `data`."""
        values: dict[str, Any] = json.loads(data)
        del values["schema_version"]
        return cls(**values)


class Shelf:
    """The files of one tenant. Safe to share between threads.

    Args:
        store: The tenant's own store.
        clock: Stamps files.
    """

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def add(self, data: bytes, *, filename: str, purpose: Purpose, media_type: str, limits: TenantLimits) -> StoredFile:
        """Keep a file.

        A file counts from the moment its record is written. Uploads of one moment do not see each other: together they
        may exceed a limit by what all of them but one add, and it is the tenant's rate that bounds how many they are.

        Raises:
            QuotaError: The tenant has as many files, or bytes, as it may.
        """
        self.check_room(len(data), limits=limits, num_files=1)
        file = StoredFile(
            file_id=f"file-{secrets.token_hex(12)}",
            filename="".join(letter for letter in filename if letter.isprintable())[:200] or "file",
            purpose=purpose,
            media_type=media_type,
            size_bytes=len(data),
            created_at_s=self._clock.now_s(),
        )
        self._store.put(_content(file), data)
        self._store.put(_record(file.file_id), file.encode())
        return file

    def check_room(self, size_bytes: int, *, limits: TenantLimits, num_files: int = 0) -> None:
        """Refuse what the tenant has no room for.

        Args:
            size_bytes: Bytes to be added, as a file or as a copy of files for a job.
            limits: What the tenant may have.
            num_files: Files to be added.

        Raises:
            QuotaError: The tenant has as many files, or bytes, as it may.
        """
        held, uploaded = self._held()
        copied = copied_bytes(self._store)
        used = uploaded + copied
        has_many = num_files > 0 and held + num_files > limits.max_files
        if has_many or used + size_bytes > limits.max_file_bytes:
            raise QuotaError(
                f"expected at most {limits.max_files} files and {limits.max_file_bytes} bytes, found {held} files "
                f"and {used} bytes already, {copied} of them copies that jobs learn from; delete files that were "
                "learned from, or concepts"
            )

    def get(self, file_id: str) -> StoredFile:
        """Return a file's record.

        Raises:
            MissingError: The tenant has no such file.
        """
        if not _FILE_ID.fullmatch(file_id):
            raise _missing(file_id)
        try:
            return StoredFile.decode(self._store.get(_record(file_id)).data)
        except NotFoundError:
            raise _missing(file_id) from None

    def content(self, file_id: str) -> bytes:
        """Return a file's bytes.

        Raises:
            MissingError: The tenant has no such file.
        """
        file = self.get(file_id)
        try:
            return self._store.get(_content(file)).data
        except NotFoundError:
            raise _missing(file_id) from None

    def list(self) -> list[StoredFile]:
        """Return every file, newest first."""
        found = []
        for key in self._store.list(PREFIX):
            if key.endswith(_RECORD):
                try:
                    found.append(StoredFile.decode(self._store.get(key).data))
                except NotFoundError:  # deleted since it was listed
                    continue
        return sorted(found, key=lambda file: (-file.created_at_s, file.file_id))

    def delete(self, file_id: str) -> None:
        """Delete a file; concepts that were learned from it stay.

        Raises:
            MissingError: The tenant has no such file.
        """
        self.get(file_id)
        self._store.erase(_record(file_id))
        for key in list(self._store.erasable(f"{PREFIX}{file_id}/")):
            self._store.erase(key)

    def _held(self) -> tuple[int, int]:
        """Return how many files there are, and their bytes; one listing, and nothing is read."""
        # In the order of keys a content comes right before its record; what a crashed upload left has none.
        num_files, used, folder, size_bytes = 0, 0, "", 0
        for key in self._store.list(PREFIX):
            if (found := _CONTENT.fullmatch(key)) is not None:
                folder, size_bytes = found[1], int(found[2])
            elif key.endswith(_RECORD):
                num_files += 1
                used += size_bytes if key == folder + _RECORD else 0
        return num_files, used


def purpose_of(text: str) -> Purpose | None:
    """Return the purpose of that name, or None."""
    return cast(Purpose, text) if text in ("vision", "fine-tune") else None


def _record(file_id: str) -> str:
    return f"{PREFIX}{file_id}{_RECORD}"


def _content(file: StoredFile) -> str:
    return f"{PREFIX}{file.file_id}/content-{file.size_bytes}"


def _missing(file_id: str) -> MissingError:
    return MissingError(f"expected an uploaded file, found none with the id {file_id[:64]!r}", field="file_id")
