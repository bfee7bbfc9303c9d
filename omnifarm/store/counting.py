"""A store that counts what is asked of another: requests by kind, and how often each key was touched."""

import threading
from collections import Counter
from collections.abc import Iterator

from omnifarm.store.base import Object, ObjectInfo, Store


class CountingStore:
    """Passes everything on to `store` and counts it; a listing counts one request per thousand keys, as on S3.

    Args:
        store: Does the work.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        """Requests by kind: put, get, head, list, delete."""
        self.by_key: Counter[str] = Counter()
        """Requests by key (prefixes for listings)."""

    @property
    def url(self) -> str:
        """See `Store.url`."""
        return self._store.url

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.requests.values())

    def reset(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.requests.clear()
            self.by_key.clear()

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """See `Store.put`."""
        self._count("put", key)
        return self._store.put(key, data, if_none_match=if_none_match, if_match=if_match)

    def get(self, key: str) -> Object:
        """See `Store.get`."""
        self._count("get", key)
        return self._store.get(key)

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        self._count("head", key)
        return self._store.head(key)

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `Store.list`."""
        self._count("list", prefix)
        for number, key in enumerate(self._store.list(prefix, after=after, limit=limit)):
            if number and number % 1000 == 0:
                self._count("list", prefix)
            yield key

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        self._count("delete", key)
        self._store.delete(key)

    def erasable(self, prefix: str) -> Iterator[str]:
        """See `Store.erasable`."""
        self._count("list", prefix)
        return self._store.erasable(prefix)

    def erase(self, key: str) -> None:
        """See `Store.erase`."""
        self._count("erase", key)
        self._store.erase(key)

    def _count(self, kind: str, key: str) -> None:
        with self._lock:
            self.requests[kind] += 1
            self.by_key[key] += 1
