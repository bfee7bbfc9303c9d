"""The store of a simulated farm: in memory, counting what it is asked and on which keys it is asked most."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from omnifarm.farm.records import CHECKPOINTS, RECORDS
from omnifarm.store.memory import MemoryStore


class SimulatedStore(MemoryStore):
    """Counts requests by kind and those on keys that many share; keeps no checkpoint and no committed record."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()
        """Requests by kind."""
        self.shared: Counter[str] = Counter()
        """Requests by key, of keys that belong to no single job; prefixes for listings."""
        self.most_per_record = 0
        """Most requests that one committed job's record saw."""
        self._by_record: Counter[str] = Counter()

    def note(self, kind: str, count: float = 1, *, shared: str | None = None) -> None:
        """Count requests that are not carried out, `shared` naming the key if it is one that many ask for."""
        self.requests[kind] += count  # type: ignore[assignment]
        if shared is not None:
            self.shared[shared] += count  # type: ignore[assignment]

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """See `Store.put`."""
        self._count("put", key)
        if key.startswith(CHECKPOINTS):
            return ""
        etag = super().put(key, data, if_none_match=if_none_match, if_match=if_match)
        if b'"state": "committed"' in data:
            super().delete(key)  # nobody asks for it any more; a million of them would fill the memory
            self.most_per_record = max(self.most_per_record, self._by_record.pop(key, 0))
        return etag

    def get(self, key: str) -> Any:
        """See `Store.get`."""
        self._count("get", key)
        return super().get(key)

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `Store.list`."""
        self.note("list", shared=prefix)
        return super().list(prefix, after=after, limit=limit)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        self._count("delete", key)
        super().delete(key)

    def _count(self, kind: str, key: str) -> None:
        self.requests[kind] += 1
        if key.startswith(RECORDS):
            self._by_record[key] += 1
