"""Where a concept's files lie: a local folder or a prefix of a store, read the same way.

A source lists relative paths once and reads files whole, never more than a stated number of bytes. Loaders see
nothing else, so every layout works from `s3://` as from a disk. Sources do not follow links out of their folder.
"""

import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from omnifarm.errors import ConceptError, NotFoundError, StoreError
from omnifarm.store.base import Store, check_key

MAX_FILES = 2_000_000
"""Files a source may hold, some 150,000 concepts of a dozen: their names take 300 MB, and 2,000 requests of an S3 store.

Only who submits or validates a set lists it; workers read the files of their own concepts by name.
"""
MAX_TEXT_BYTES = 16 * 2**20
"""Largest JSON or YAML file read."""


class FileSource(Protocol):
    """A tree of files to read from."""

    @property
    def url(self) -> str:
        """Where the tree lies, for messages and records."""

    def paths(self) -> tuple[str, ...]:
        """Return the relative paths ("a/b.png") of all files, sorted; hidden files and folders left out."""

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """Return a file's content.

        Raises:
            ConceptError: No such file, or it holds more than `max_bytes`.
        """


@dataclass(slots=True)
class LocalSource:
    """Files of a local folder."""

    root: Path
    """The folder."""
    _paths: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.root)

    def paths(self) -> tuple[str, ...]:
        """See `FileSource.paths`; the tree is listed once."""
        if self._paths is None:
            self._paths = tuple(sorted(_capped(self._walk(), self.url)))
        return self._paths

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """See `FileSource.read`."""
        full = self.root / path
        if not full.resolve().is_relative_to(self.root.resolve()):
            raise _failure(path, "leads outside its folder", "copy the file into the folder")
        try:
            size = full.stat().st_size
            if size > max_bytes:
                raise too_large(path, size_bytes=size, max_bytes=max_bytes)
            with full.open("rb") as file:
                # One more than allowed: the file may grow between the two calls.
                data = file.read(max_bytes + 1)
        except FileNotFoundError as error:
            raise _failure(path, "does not exist", "check the path") from error
        except OSError as error:
            raise _failure(path, f"cannot be read ({error.strerror})", "check its permissions") from error
        if len(data) > max_bytes:
            raise too_large(path, size_bytes=len(data), max_bytes=max_bytes)
        return data

    def _walk(self) -> Iterator[str]:
        for folder, names, files in os.walk(self.root):
            names[:] = [name for name in names if not name.startswith(".")]
            for name in files:
                if not name.startswith("."):
                    yield (Path(folder) / name).relative_to(self.root).as_posix()


@dataclass(slots=True)
class StoreSource:
    """Objects of a store."""

    store: Store
    """Holds the objects; its keys are the relative paths."""
    url: str = "store"
    """Where the store lies, for messages and records."""
    _paths: tuple[str, ...] | None = field(default=None, repr=False)

    def paths(self) -> tuple[str, ...]:
        """See `FileSource.paths`; the store is listed once."""
        if self._paths is None:
            keys = (key for key in self.store.list("") if not _is_hidden(key))
            self._paths = tuple(sorted(_capped(keys, self.url)))
        return self._paths

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """See `FileSource.read`."""
        try:
            check_key(path)
        except StoreError as error:
            raise _failure(path, f"cannot be a store's key ({error})", "rename the file") from error
        try:
            size = self.store.head(path).size_bytes
            if size > max_bytes:
                raise too_large(path, size_bytes=size, max_bytes=max_bytes)
            data = self.store.get(path).data
        except NotFoundError as error:
            raise _failure(path, "does not exist", "check the path") from error
        if len(data) > max_bytes:
            raise too_large(path, size_bytes=len(data), max_bytes=max_bytes)
        return data


@dataclass(frozen=True, slots=True)
class SubSource:
    """A folder inside another source."""

    parent: FileSource
    """The source that holds the folder."""
    folder: str
    """Relative path of the folder, without a slash at the end."""

    @property
    def url(self) -> str:
        """The parent's place and the folder."""
        return f"{self.parent.url.rstrip('/')}/{self.folder}"

    def paths(self) -> tuple[str, ...]:
        """See `FileSource.paths`."""
        prefix = self.folder + "/"
        return tuple(path[len(prefix) :] for path in below(self.parent.paths(), prefix))

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """See `FileSource.read`."""
        return self.parent.read(f"{self.folder}/{path}", max_bytes=max_bytes)


def below(paths: tuple[str, ...], prefix: str) -> tuple[str, ...]:
    """Return the paths that begin with `prefix`, without looking at the others: sets hold many thousand folders.

    Args:
        paths: Sorted, as of `FileSource.paths`.
        prefix: Text; "" for all.
    """
    if not prefix:
        return paths
    first = bisect_left(paths, prefix)
    return paths[first : bisect_left(paths, prefix + "\U0010ffff", lo=first)]


def open_source(url: str) -> FileSource:
    """Open a local folder or a store URL (`s3://bucket/prefix`).

    Raises:
        ConceptError: A local path that is no folder.
        StoreError: The store cannot be opened.
    """
    if url.startswith(("s3:", "memory:")):
        from omnifarm.store.open import open_store

        return StoreSource(open_store(url), url)
    path = Path(url.removeprefix("file://")).expanduser()
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise ConceptError(
            f"expected a folder of concepts at {url}, found {found}; give a folder that holds concept.yaml, "
            "a folder of such folders, a UnifyBench folder, or an s3:// URL"
        )
    return LocalSource(path)


def too_large(path: str, *, size_bytes: int, max_bytes: int) -> ConceptError:
    """Return the error for a file above its limit."""
    return _failure(
        path, f"holds {size_bytes:,} bytes, at most {max_bytes:,} are read", "make it smaller (resize, recompress)"
    )


def _failure(path: str, what: str, fix: str) -> ConceptError:
    return ConceptError(f"{path}: {what}; {fix}", file=path, what=what, fix=fix)


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") or not part for part in key.split("/"))


def _capped(paths: Iterator[str], url: str) -> Iterator[str]:
    for count, path in enumerate(paths):
        if count >= MAX_FILES:
            raise ConceptError(
                f"expected at most {MAX_FILES:,} files at {url}, found more; give the folder of the concepts themselves, "
                "or split a larger set into folders and submit one after the other"
            )
        yield path
