import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from omnifarm.errors import AccessError, NotFoundError, PreconditionError, StoreError
from omnifarm.store.local import LocalStore


def _increment(root: Path, times: int) -> None:
    store = LocalStore(root, fsync=False)
    for _ in range(times):
        while True:
            found = store.get("counter")
            try:
                store.put("counter", str(int(found.data) + 1).encode(), if_match=found.etag)
                break
            except PreconditionError:
                continue


def _create(root: Path, number: int, winners: "multiprocessing.Queue[int]") -> None:
    try:
        LocalStore(root, fsync=False).put("once", str(number).encode(), if_none_match=True)
    except PreconditionError:
        return
    winners.put(number)


def _write_forever(root: Path) -> None:
    store = LocalStore(root, fsync=False)
    while True:
        for letter in (b"a", b"b"):
            store.put("k", letter * 400_000)


def test_swaps_from_several_processes_are_all_counted(tmp_path: Path) -> None:
    LocalStore(tmp_path).put("counter", b"0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_increment, args=(tmp_path, 25)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert LocalStore(tmp_path).get("counter").data == b"100"


def test_a_create_race_of_processes_has_one_winner(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    winners = context.Queue()
    processes = [context.Process(target=_create, args=(tmp_path, number, winners)) for number in range(16)]
    for process in processes:
        process.start()
    winner = winners.get(timeout=30)
    for process in processes:
        process.join()
    assert winners.empty()
    assert LocalStore(tmp_path).get("once").data == str(winner).encode()


def test_a_writer_killed_anywhere_leaves_a_whole_object_and_no_lock(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, fsync=False)
    store.put("k", b"a" * 400_000)
    for number in range(5):
        process = multiprocessing.get_context("fork").Process(target=_write_forever, args=(tmp_path,))
        process.start()
        assert process.pid is not None
        time.sleep(0.03 + 0.007 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert set(store.get("k").data) in ({ord("a")}, {ord("b")})
        assert len(store.get("k").data) == 400_000
        store.put("k", b"a" * 400_000, if_match=store.get("k").etag)
    assert list(store.list()) == ["k"]


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("k", b"", if_none_match=True)
    with pytest.raises(PreconditionError):
        store.put("k", b"", if_none_match=True)
    assert list((tmp_path / ".omnifarm-store" / "tmp").iterdir()) == []


def _die_before_the_name_is_given(root: Path) -> None:
    store = LocalStore(root)
    store._give_name = lambda *args, **named: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    store.put("prepared/face", b"latents of a face")


def test_what_a_killed_writer_left_goes_when_the_store_is_opened_an_hour_later(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_before_the_name_is_given, args=(tmp_path,))
    process.start()
    process.join(60)
    (left,) = (tmp_path / ".omnifarm-store" / "tmp").iterdir()
    assert left.read_bytes() == b"latents of a face"
    foreign = left.with_name("notes.txt")
    foreign.write_text("not the store's")
    for age_s, is_there in ((3500, True), (3700, False)):
        for path in (left, foreign):
            os.utime(path, (time.time() - age_s,) * 2)
        LocalStore(tmp_path)
        assert (left.exists(), foreign.exists()) == (is_there, True)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    store = LocalStore(tmp_path / "store")
    store.put("inside", b"")
    (tmp_path / "store" / "door").symlink_to(outside)
    (tmp_path / "store" / "file").symlink_to(outside / "secret")
    for key in ("door/secret", "file"):
        with pytest.raises(AccessError, match="link"):
            store.get(key)
        with pytest.raises(AccessError, match="link"):
            store.put(key, b"y")
    assert list(store.list()) == ["inside"]


def test_the_stores_own_files_are_not_objects(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="belong to the store"):
        LocalStore(tmp_path).put(".omnifarm-store/locks/0001", b"")


def test_a_key_cannot_be_object_and_folder(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"")
    with pytest.raises(StoreError, match="both object and folder"):
        store.put("a/b", b"")
    store.put("c/d", b"")
    with pytest.raises(StoreError, match="beginning of other keys"):
        store.put("c", b"")
    with pytest.raises(NotFoundError):
        store.get("c")


def test_a_store_that_was_never_written_is_empty(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "not" / "there")
    assert list(store.list("x/")) == []
    store.delete("x/y")
    assert not (tmp_path / "not").exists()


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        LocalStore(tmp_path / "f")
