"""A store in this process's memory: for tests and throw-away runs. Nothing survives the process."""

import itertools
import threading
from collections.abc import Iterator

from sortedcontainers import SortedSet

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


class MemoryStore:
    """A dictionary under a lock; threads may share it, processes may not."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._keys = SortedSet()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Always "memory:"."""
        return "memory:"

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """See `Store.put`."""
        check_key(key)
        check_conditions(if_none_match=if_none_match, if_match=if_match)
        data = bytes(data)
        with self._lock:
            old = self._objects.get(key)
            if if_none_match or if_match is not None:
                found = None if old is None else content_etag(old)
                require_version(self.url, key, found=found, if_none_match=if_none_match, if_match=if_match)
            if old is None:
                self._keys.add(key)
            self._objects[key] = data
        return content_etag(data)

    def get(self, key: str) -> Object:
        """See `Store.get`."""
        data = self._find(key)
        return Object(data, content_etag(data))

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        data = self._find(key)
        return ObjectInfo(key, len(data), content_etag(data))

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `Store.list`; a snapshot of the moment of the call's first step."""
        check_prefix(prefix)
        with self._lock:
            following = self._keys.irange(max(prefix, after), inclusive=(not after or after < prefix, False))
            matching = itertools.takewhile(lambda key: key.startswith(prefix), following)
            keys = list(itertools.islice(matching, limit))
        yield from keys

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        check_key(key)
        with self._lock:
            if self._objects.pop(key, None) is not None:
                self._keys.remove(key)

    def erasable(self, prefix: str) -> Iterator[str]:
        """See `Store.erasable`; there are no older versions here."""
        return self.list(prefix)

    def erase(self, key: str) -> None:
        """See `Store.erase`; there are no older versions here."""
        self.delete(key)

    def _find(self, key: str) -> bytes:
        check_key(key)
        with self._lock:
            data = self._objects.get(key)
        if data is None:
            raise not_found(self.url, key)
        return data
