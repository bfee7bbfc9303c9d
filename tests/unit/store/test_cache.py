"""Copies on this machine: never stale, never torn, never more than allowed, and gone with what they are of."""

import os
from pathlib import Path

import pytest

from omnifarm.errors import ConfigError, NotFoundError
from omnifarm.store.base import Object
from omnifarm.store.cache import MAX_AGE_S, MIN_BYTES, CachedStore
from omnifarm.store.memory import MemoryStore
from omnifarm.store.open import open_store

BIG = os.urandom(MIN_BYTES)


class Distant(MemoryStore):
    """Counts the bytes that would have travelled."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_bytes = 0

    def get(self, key: str) -> Object:
        found = super().get(key)
        self.sent_bytes += len(found.data)
        return found

    def get_unless(self, key: str, etag: str) -> Object | None:
        return None if super().get(key).etag == etag else self.get(key)


@pytest.fixture
def distant() -> Distant:
    return Distant()


@pytest.fixture
def store(distant: Distant, tmp_path: Path) -> CachedStore:
    return CachedStore(distant, tmp_path / "cache", max_bytes=10 * MIN_BYTES)


def copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def test_bytes_travel_once_and_every_process_has_them(store: CachedStore, distant: Distant, tmp_path: Path) -> None:
    etag = distant.put("k", BIG)
    again = CachedStore(distant, tmp_path / "cache", max_bytes=10 * MIN_BYTES)
    assert [one.get("k") for one in (store, store, again)] == [Object(BIG, etag)] * 3
    assert distant.sent_bytes == len(BIG)


def test_a_copy_is_never_served_in_place_of_a_newer_version(store: CachedStore, distant: Distant) -> None:
    distant.put("k", BIG)
    store.get("k")
    etag = distant.put("k", BIG[::-1])
    assert store.get("k") == Object(BIG[::-1], etag)
    distant.put("k", b"small now")
    assert store.get("k").data == b"small now"


def test_what_is_deleted_anywhere_is_gone_here(store: CachedStore, distant: Distant, tmp_path: Path) -> None:
    for key in ("a", "b", "c"):
        distant.put(key, BIG)
        store.get(key)
    store.erase("a")
    store.delete("b")
    assert len(copies(tmp_path)) == 1
    distant.erase("c")  # by another machine
    with pytest.raises(NotFoundError):
        store.get("c")
    assert copies(tmp_path) == []


def test_the_folder_stays_within_its_size_and_keeps_what_is_used(
    store: CachedStore, distant: Distant, tmp_path: Path
) -> None:
    for number in range(20):
        distant.put(str(number), BIG)
        store.get(str(number))
        store.get("0")
        assert sum(path.stat().st_size for path in copies(tmp_path)) <= 10 * MIN_BYTES
    assert len(copies(tmp_path)) == 9
    sent_bytes = distant.sent_bytes
    store.get("0")
    assert distant.sent_bytes == sent_bytes


def test_small_and_huge_objects_are_not_kept(store: CachedStore, distant: Distant, tmp_path: Path) -> None:
    for key, data in (("small", BIG[:-1]), ("huge", BIG + BIG)):
        distant.put(key, data)
        assert store.get(key).data == data
    assert not (tmp_path / "cache").exists()


def test_a_copy_nobody_used_for_a_day_goes(store: CachedStore, distant: Distant, tmp_path: Path) -> None:
    distant.put("old", BIG)
    store.get("old")
    (path,) = copies(tmp_path)
    used_s = path.stat().st_mtime - MAX_AGE_S - 60
    os.utime(path, (used_s, used_s))
    distant.put("new", BIG)
    store.get("new")
    assert path not in copies(tmp_path)
    assert len(copies(tmp_path)) == 1


@pytest.mark.parametrize("damage", [b"", b"no json\n", b'{"etag": "e"}\nx', None])
def test_a_damaged_copy_is_read_anew(
    store: CachedStore, distant: Distant, tmp_path: Path, damage: bytes | None
) -> None:
    distant.put("k", BIG)
    store.get("k")
    (path,) = copies(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert store.get("k").data == BIG
    assert distant.sent_bytes == 2 * len(BIG)


def test_copies_are_for_their_owners_eyes(store: CachedStore, distant: Distant, tmp_path: Path) -> None:
    distant.put("k", BIG)
    store.get("k")
    assert [path.stat().st_mode & 0o077 for path in (tmp_path / "cache", *copies(tmp_path))] == [0, 0]


def test_a_disk_that_takes_nothing_costs_the_copy_alone(distant: Distant, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    distant.put("k", BIG)
    assert CachedStore(distant, tmp_path / "cache", max_bytes=10 * MIN_BYTES).get("k").data == BIG


@pytest.mark.parametrize("size", ["0", "-1", "much", "inf"])
def test_a_size_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: str) -> None:
    monkeypatch.setenv("OMNIFARM_CACHE", str(tmp_path))
    monkeypatch.setenv("OMNIFARM_CACHE_GB", size)
    with pytest.raises(ConfigError, match="OMNIFARM_CACHE_GB"):
        open_store("s3://bucket/prefix")


def test_folders_and_memory_need_no_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMNIFARM_CACHE", str(tmp_path))
    assert not isinstance(open_store(str(tmp_path / "store")), CachedStore)
    assert isinstance(open_store("s3://bucket/prefix"), CachedStore)
