"""Uploaded files of a tenant: how many there are, how much they take, and what counting them costs."""

import pytest

from omnifarm.clock import ManualClock
from omnifarm.store.counting import CountingStore
from omnifarm.store.memory import MemoryStore
from omnifarm.tenancy import TenantLimits
from serve.errors import MissingError, QuotaError
from serve.shelf import PREFIX, Shelf, StoredFile


def add(shelf: Shelf, num_bytes: int = 10, *, limits: TenantLimits | None = None) -> StoredFile:
    limits = limits or TenantLimits()
    return shelf.add(b"x" * num_bytes, filename="a", purpose="vision", media_type="image/png", limits=limits)


def test_an_upload_reads_none_of_the_earlier_ones() -> None:
    store = CountingStore(MemoryStore())
    shelf = Shelf(store, clock=ManualClock())
    for _ in range(12):
        store.reset()
        add(shelf)
        # What uploads hold, and what copies do.
        assert store.requests == {"list": 2, "put": 2}


def test_files_and_bytes_are_counted_from_their_names() -> None:
    store = MemoryStore()
    shelf = Shelf(store, clock=ManualClock())
    for num_bytes in (10, 10, 30):
        add(shelf, num_bytes)
    # An upload that crashed before its record was written is no file.
    store.put(f"{PREFIX}file-{'0' * 24}/content-1000", b"")
    with pytest.raises(QuotaError, match="found 3 files and 50 bytes"):
        add(shelf, limits=TenantLimits(max_files=3))
    with pytest.raises(QuotaError, match="found 3 files and 50 bytes"):
        add(shelf, 51, limits=TenantLimits(max_file_bytes=100))
    add(shelf, 50, limits=TenantLimits(max_files=4, max_file_bytes=100))


def test_a_deleted_file_gives_its_room_back_and_leaves_nothing() -> None:
    store = MemoryStore()
    shelf, limits = Shelf(store, clock=ManualClock()), TenantLimits(max_files=1, max_file_bytes=10)
    file = add(shelf, limits=limits)
    assert shelf.content(file.file_id) == b"x" * 10
    shelf.delete(file.file_id)
    assert list(store.list()) == []
    with pytest.raises(MissingError):
        shelf.content(file.file_id)
    add(shelf, limits=limits)
