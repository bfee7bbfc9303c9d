"""A store in this process's memory: for tests and throw-away runs. Nothing survives the process."""

import threading
from collections.abc import Iterator

from omnifarm.store.base import (
    Object,
    ObjectInfo,
    already_exists,
    check_conditions,
    check_key,
    check_prefix,
    content_etag,
    has_changed,
    not_found,
)


class MemoryStore:
    """A dictionary under a lock; threads may share it, processes may not."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
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
            if if_none_match and old is not None:
                raise already_exists(self.url, key)
            if if_match is not None and (old is None or content_etag(old) != if_match):
                raise has_changed(self.url, key)
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

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Store.list`; a snapshot of the moment of the call's first step."""
        check_prefix(prefix)
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix))
        yield from keys

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def _find(self, key: str) -> bytes:
        check_key(key)
        with self._lock:
            data = self._objects.get(key)
        if data is None:
            raise not_found(self.url, key)
        return data
