"""A store in a folder: one file per object, safe for many threads and processes of one machine.

Layout: `<root>/<key>` holds the bytes; `<root>/.omnifarm-store/` holds temporary and lock files, so a listing never
meets them. An object is written to a temporary file, flushed to the disk and then given its name in one step, so no
reader and no crash ever sees half of it. Writers of one key take turns under an advisory lock; the lock goes with its
process, so a killed writer blocks nobody. Its temporary file is removed when the store is opened an hour later, or any
time after. On network file systems without working locks, use S3 instead.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from omnifarm.errors import AccessError, NotFoundError, StoreError
from omnifarm.store.base import (
    Object,
    ObjectInfo,
    check_conditions,
    check_key,
    check_prefix,
    content_etag,
    not_found,
    require_version,
)

_PRIVATE = ".omnifarm-store"
_NUM_LOCKS = 1024
_ABANDONED_S = 3600.0
_TEMPORARY = re.compile(r"[0-9]+-[0-9a-f]{16}")


class LocalStore:
    """Objects as files under `root`, which is created at the first write.

    Args:
        root: The folder; may be relative, is made absolute.
        fsync: Whether a write reaches the disk before it is acknowledged; only tests should say no.
    """

    def __init__(self, root: Path, *, fsync: bool = True) -> None:
        self._root = Path(os.path.abspath(root))
        self._fsync = fsync
        if self._root.exists() and not self._root.is_dir():
            raise StoreError(f"a local store is a folder; {self._root} is a file: choose another path")
        self._remove_abandoned()

    @property
    def url(self) -> str:
        """The absolute path of its folder."""
        return str(self._root)

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """See `Store.put`."""
        path = self._path(key)
        check_conditions(if_none_match=if_none_match, if_match=if_match)
        with self._translated(key):
            temporary = self._write_temporary(data)
            try:
                with self._locked(key):
                    self._give_name(temporary, path, key, if_none_match=if_none_match, if_match=if_match)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
        return content_etag(data)

    def get(self, key: str) -> Object:
        """See `Store.get`."""
        data = self._read(key)
        return Object(data, content_etag(data))

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`; reads the file, because the etag is the digest of its content."""
        data = self._read(key)
        return ObjectInfo(key, len(data), content_etag(data))

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `Store.list`; reads folders as the iteration comes to them."""
        check_prefix(prefix)
        with self._translated(prefix):
            yield from itertools.islice(self._walk("", prefix=prefix, after=after), limit)

    def delete(self, key: str) -> None:
        """See `Store.delete`; folders left empty stay, a racing writer may be about to use them."""
        path = self._path(key)
        if not path.parent.is_dir():
            return
        with self._translated(key), self._locked(key), contextlib.suppress(FileNotFoundError):
            path.unlink()
            self._sync_folder(path.parent)

    def erasable(self, prefix: str) -> Iterator[str]:
        """See `Store.erasable`; there are no older versions here."""
        return self.list(prefix)

    def erase(self, key: str) -> None:
        """See `Store.erase`; there are no older versions here."""
        self.delete(key)

    def _path(self, key: str) -> Path:
        check_key(key)
        path = self._root / key
        if key.split("/", 1)[0] == _PRIVATE:
            raise StoreError(f"keys under {_PRIVATE!r} belong to the store itself; {key!r} needs another name", key=key)
        # A link planted inside the folder must not lead a key out of it.
        parent = path.parent.resolve()
        if not parent.is_relative_to(self._root.resolve()) or path.is_symlink():
            raise AccessError(f"{key!r} leads out of the store {self._root} through a link: remove the link", key=key)
        return path

    def _read(self, key: str) -> bytes:
        path = self._path(key)
        with self._translated(key):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise not_found(self.url, key) from None

    def _write_temporary(self, data: bytes) -> Path:
        folder = self._root / _PRIVATE / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        with path.open("xb") as file:
            file.write(data)
            if self._fsync:
                file.flush()
                os.fsync(file.fileno())
        return path

    def _remove_abandoned(self) -> None:
        """Remove temporary files of writers that were killed: they may hold what was to be deleted with its key."""
        # Another user's files, or none at all, are no reason not to open the store.
        with contextlib.suppress(OSError), os.scandir(self._root / _PRIVATE / "tmp") as entries:
            # By name: a link planted in place of the folder must not make us remove what we did not write.
            for entry in (one for one in entries if _TEMPORARY.fullmatch(one.name)):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_S:
                        os.unlink(entry.path)

    def _give_name(self, temporary: Path, path: Path, key: str, *, if_none_match: bool, if_match: str | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise StoreError(f"{key!r} is the beginning of other keys in {self.url}: one name, one meaning", key=key)
        if if_none_match or if_match is not None:
            found = content_etag(path.read_bytes()) if path.exists() else None
            require_version(self.url, key, found=found, if_none_match=if_none_match, if_match=if_match)
        temporary.replace(path)
        self._sync_folder(path.parent)

    def _sync_folder(self, folder: Path) -> None:
        if not self._fsync:
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        # A fixed number of lock files: removing a lock file safely is a riddle, and two keys that share one only wait.
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % _NUM_LOCKS
        folder = self._root / _PRIVATE / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        # Each call opens its own description, so threads of one process exclude each other too.
        descriptor = os.open(folder / f"{number:04d}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _walk(self, base: str, *, prefix: str, after: str) -> Iterator[str]:
        """Yield the keys below the folder `base` ("" or ending at a slash) that are asked for, in order."""
        names = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._root / base) as entries:
            for entry in entries:
                # A folder sorts as its keys do: "a/" stands behind "a-b".
                name = base + entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "")
                if not entry.is_symlink() and name != _PRIVATE + "/":
                    names.append(name)
        for name in sorted(names):
            if not name.endswith("/"):
                if name.startswith(prefix) and name > after:
                    yield name
            # A branch that can hold no key with the prefix, or none behind `after`, is not entered.
            elif (name.startswith(prefix) or prefix.startswith(name)) and (name > after or after.startswith(name)):
                yield from self._walk(name, prefix=prefix, after=after)

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except (StoreError, NotFoundError):
            raise
        except PermissionError as error:
            raise AccessError(
                f"{error.filename or key!r} in {self.url} may not be used by this user: check owner and permissions",
                key=key,
                store=self.url,
            ) from error
        except (NotADirectoryError, FileExistsError) as error:
            raise StoreError(
                f"{key!r} passes through an object in {self.url}: a key cannot be both object and folder", key=key
            ) from error
        except OSError as error:
            raise StoreError(
                f"{self.url} could not serve {key!r}: {error.strerror}; check free space and the disk",
                key=key,
                store=self.url,
            ) from error
