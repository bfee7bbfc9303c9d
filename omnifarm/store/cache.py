"""A folder on this machine that keeps what was read from a distant store, up to a size.

Every read still asks the store, which answers "not modified" instead of sending the bytes again: a copy is never served
that is not the present version, and a deleted object is gone here, too. Copies go when the folder is full, the least
recently used first, and after a day without use. Any number of processes may share the folder.
"""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from omnifarm.errors import NotFoundError
from omnifarm.logs import event
from omnifarm.store.base import Object, ObjectInfo, Store

MIN_BYTES = 64 * 2**10
"""Smaller objects (job records, manifests) are not kept: asking costs as much as reading."""
MAX_AGE_S = 24 * 3600.0
"""Seconds without use after which a copy goes; a copy may be of a person's face."""
_SUFFIX = ".object"
_logger = logging.getLogger(__name__)


class RevalidatingStore(Store, Protocol):
    """A store that can be asked whether a version is still the present one."""

    def get_unless(self, key: str, etag: str) -> Object | None:
        """Return the object as `get` does, or None while its etag is still this one."""
        ...


class CachedStore:
    """A store with copies of what was read on this machine. Safe to share between threads and processes.

    Args:
        store: Where everything lies.
        folder: For the copies, readable by its owner alone; made when needed.
        max_bytes: Most bytes of copies (> 0); an object of more than an eighth is not kept.
    """

    def __init__(self, store: RevalidatingStore, folder: Path, *, max_bytes: int) -> None:
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes

    @property
    def url(self) -> str:
        """See `Store.url`."""
        return self._store.url

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """See `Store.put`; what is written is not kept before it is read."""
        return self._store.put(key, data, if_none_match=if_none_match, if_match=if_match)

    def get(self, key: str) -> Object:
        """See `Store.get`; one request either way."""
        path = self._path(key)
        kept = _read(path)
        try:
            found = self._store.get(key) if kept is None else self._store.get_unless(key, kept.etag)
        except NotFoundError:
            _remove(path)
            raise
        if found is None:
            assert kept is not None
            with contextlib.suppress(OSError):
                os.utime(path)
            return kept
        if MIN_BYTES <= len(found.data) <= self._max_bytes // 8:
            self._keep(path, found)
        elif kept is not None:
            _remove(path)
        return found

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        return self._store.head(key)

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `Store.list`."""
        return self._store.list(prefix, after=after, limit=limit)

    def delete(self, key: str) -> None:
        """See `Store.delete`; the copy here goes with it."""
        self._store.delete(key)
        _remove(self._path(key))

    def erasable(self, prefix: str) -> Iterator[str]:
        """See `Store.erasable`."""
        return self._store.erasable(prefix)

    def erase(self, key: str) -> None:
        """See `Store.erase`; the copy here goes with it, one on another machine at its next use or after a day."""
        self._store.erase(key)
        _remove(self._path(key))

    def _path(self, key: str) -> Path:
        return self._folder / (hashlib.sha256(f"{self._store.url}\n{key}".encode()).hexdigest() + _SUFFIX)

    def _keep(self, path: Path, found: Object) -> None:
        """Write a copy whole; a full or broken disk costs the copy, not the read."""
        head = json.dumps({"etag": found.etag, "sha256": hashlib.sha256(found.data).hexdigest()}).encode() + b"\n"
        draft = path.with_suffix(f".{secrets.token_hex(8)}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(len(head) + len(found.data))
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(head)
                file.write(found.data)
            draft.replace(path)
        except OSError as error:
            _remove(draft)
            event(_logger, "copy_not_kept", level=logging.WARNING, folder=str(self._folder), reason=error.strerror)

    def _make_room(self, size_bytes: int) -> None:
        """Remove what is old, then what was used longest ago, until so many bytes fit."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process made room, too
                    facts = entry.stat()
                    found.append((facts.st_mtime, facts.st_size, Path(entry.path)))
        used_bytes, oldest_s = sum(size for _, size, _ in found), time.time() - MAX_AGE_S
        for used_s, size, path in sorted(found):
            if used_s >= oldest_s and used_bytes + size_bytes <= self._max_bytes:
                return
            _remove(path)
            used_bytes -= size


def _read(path: Path) -> Object | None:
    """Return a copy if there is a sound one."""
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        facts = json.loads(head)
        if hashlib.sha256(data).hexdigest() == facts["sha256"]:
            return Object(data, str(facts["etag"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    event(_logger, "copy_damaged", level=logging.WARNING, path=str(path))
    _remove(path)
    return None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
