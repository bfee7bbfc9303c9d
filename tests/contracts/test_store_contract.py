"""One suite for every store: memory, a folder, and S3 served by a real SeaweedFS, also with copies on this machine."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnifarm.cli.local_seaweedfs import LocalSeaweedFS
from omnifarm.errors import AccessError, NotFoundError, PreconditionError, StoreError
from omnifarm.store.base import Object, Store
from omnifarm.store.local import LocalStore
from omnifarm.store.memory import MemoryStore
from omnifarm.store.multipart import PART_BYTES
from omnifarm.store.open import open_store
from omnifarm.store.probe import probe_conditional_writes

_numbers = itertools.count()
IMPLEMENTATIONS = ["memory", "local", *(pytest.param(name, marks=pytest.mark.s3) for name in ("s3", "cached s3"))]


@pytest.fixture(params=IMPLEMENTATIONS)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "local":
        yield LocalStore(tmp_path / "store", fsync=False)
    else:
        server: LocalSeaweedFS = request.getfixturevalue("seaweedfs")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        if request.param == "cached s3":
            monkeypatch.setenv("OMNIFARM_CACHE", str(tmp_path / "cache"))
        yield open_store(f"s3://{server.bucket}/contract-{next(_numbers)}")


def wins(store: Store, key: str, data: bytes, *, etag: str | None = None) -> bool:
    try:
        store.put(key, data, if_none_match=etag is None, if_match=etag)
    except PreconditionError:
        return False
    return True


def test_what_was_put_is_what_is_read(store: Store) -> None:
    etag = store.put("a/b.bin", b"\x00\xff bytes")
    found = store.get("a/b.bin")
    assert (found.data, found.etag) == (b"\x00\xff bytes", etag)


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", b"")
    assert store.get("empty").data == b""
    assert store.head("empty").size_bytes == 0


def test_a_large_object_survives(store: Store) -> None:
    data = bytes(range(256)) * 40_000
    store.put("large", data)
    assert [store.get("large").data == data for _ in range(2)] == [True, True]


def test_a_very_large_object_keeps_every_promise_of_a_small_one(store: Store) -> None:
    first, second = (letter * (2 * PART_BYTES + 1) for letter in (b"a", b"b"))
    etag = store.put("huge", first, if_none_match=True)
    with pytest.raises(PreconditionError, match="already exists"):
        store.put("huge", second, if_none_match=True)
    assert store.get("huge") == Object(first, etag)
    new = store.put("huge", second, if_match=etag)
    with pytest.raises(PreconditionError, match="not the version"):
        store.put("huge", first, if_match=etag)
    assert store.get("huge") == Object(second, new)
    assert store.head("huge").size_bytes == len(second)
    store.erase("huge")
    with pytest.raises(PreconditionError):
        store.put("huge", first, if_match=new)
    assert list(store.list()) == []


def test_head_tells_size_and_etag_without_the_bytes(store: Store) -> None:
    etag = store.put("k", b"12345")
    info = store.head("k")
    assert (info.key, info.size_bytes, info.etag) == ("k", 5, etag)


def test_a_later_put_replaces_and_changes_the_etag(store: Store) -> None:
    first = store.put("k", b"one")
    assert store.put("k", b"two") != first
    assert store.get("k").data == b"two"


def test_a_missing_key_is_named_in_the_error(store: Store) -> None:
    for read in (store.get, store.head):
        with pytest.raises(NotFoundError, match="no-such-key"):
            read("no-such-key")


def test_create_once_refuses_the_second(store: Store) -> None:
    store.put("k", b"first", if_none_match=True)
    with pytest.raises(PreconditionError, match="already exists"):
        store.put("k", b"second", if_none_match=True)
    assert store.get("k").data == b"first"


def test_create_once_works_again_after_a_delete(store: Store) -> None:
    store.put("k", b"first", if_none_match=True)
    store.delete("k")
    store.put("k", b"second", if_none_match=True)
    assert store.get("k").data == b"second"


def test_compare_and_swap_replaces_only_what_was_read(store: Store) -> None:
    old = store.put("k", b"one")
    new = store.put("k", b"two", if_match=old)
    with pytest.raises(PreconditionError, match="not the version"):
        store.put("k", b"three", if_match=old)
    assert store.get("k").etag == new


def test_compare_and_swap_on_a_missing_key_is_refused(store: Store) -> None:
    etag = store.put("k", b"one")
    store.delete("k")
    with pytest.raises(PreconditionError):
        store.put("k", b"two", if_match=etag)
    with pytest.raises(NotFoundError):
        store.get("k")


def test_both_conditions_at_once_make_no_sense(store: Store) -> None:
    with pytest.raises(StoreError, match="not both"):
        store.put("k", b"", if_none_match=True, if_match="x")


def test_a_16_way_create_race_has_exactly_one_winner(store: Store) -> None:
    for number in range(2):
        key = f"race/{number}"
        values = [f"writer {writer}".encode() for writer in range(16)]
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda value, key=key: wins(store, key, value), values))
        assert won.count(True) == 1
        assert store.get(key).data == values[won.index(True)]


def test_a_16_way_swap_race_has_exactly_one_winner(store: Store) -> None:
    etag = store.put("race", b"start")
    values = [f"writer {writer}".encode() for writer in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda value: wins(store, "race", value, etag=etag), values))
    assert won.count(True) == 1
    assert store.get("race").data == values[won.index(True)]


def test_racing_increments_are_all_counted(store: Store) -> None:
    store.put("counter", b"0")

    def increment(_: int) -> None:
        while True:
            found = store.get("counter")
            if wins(store, "counter", str(int(found.data) + 1).encode(), etag=found.etag):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(24)))
    assert store.get("counter").data == b"24"


def test_readers_see_whole_objects_while_they_are_replaced(store: Store) -> None:
    versions = [bytes([letter]) * 100_000 for letter in b"ab"]
    store.put("k", versions[0])

    def write(number: int) -> None:
        store.put("k", versions[number % 2])

    with ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write, number) for number in range(20)]
        while not all(each.done() for each in writing):
            assert store.get("k").data in versions


def test_a_listing_holds_every_key_in_order_past_a_thousand(store: Store) -> None:
    keys = [f"many/{number:05d}" for number in range(1_105)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))
    store.put("other/x", b"")
    assert list(store.list("many/")) == keys
    assert list(store.list("many/0109")) == keys[1090:1100]
    assert len(list(store.list())) == 1_106


def test_whatever_is_there_can_be_erased(store: Store) -> None:
    for key in ("a/1", "a/2", "ab/3", "b"):
        store.put(key, b"x")
    assert sorted(store.erasable("a")) == ["a/1", "a/2", "ab/3"]
    for key in store.erasable("a/"):
        store.erase(key)
    assert list(store.list()) == ["ab/3", "b"]


def test_a_prefix_is_text_and_need_not_end_at_a_slash(store: Store) -> None:
    for key in ("jobs/a1", "jobs/a2/x", "jobs/b", "jobs2/a"):
        store.put(key, b"")
    assert list(store.list("jobs/a")) == ["jobs/a1", "jobs/a2/x"]
    assert list(store.list("jobs")) == ["jobs/a1", "jobs/a2/x", "jobs/b", "jobs2/a"]
    assert list(store.list("nothing/here")) == []


def test_a_listing_may_begin_anywhere_and_end_early(store: Store) -> None:
    keys = ["a", "q/1", "q/3/a", "q/3/b", "q/5", "q0", "qz", "z"]
    for key in keys:
        store.put(key, b"")
    assert list(store.list()) == keys
    assert list(store.list("q/", after="q/2")) == ["q/3/a", "q/3/b", "q/5"]
    assert list(store.list("q/", after="q/3/a", limit=2)) == ["q/3/b", "q/5"]
    assert list(store.list("q/", limit=1)) == ["q/1"]
    assert list(store.list("q/", after="q/5")) == []
    assert list(store.list("q", after="b", limit=3)) == ["q/1", "q/3/a", "q/3/b"]
    assert list(store.list("q", after="q/5")) == ["q0", "qz"]
    assert list(store.list("q/", after="zz")) == []


def test_delete_removes_and_may_be_repeated(store: Store) -> None:
    store.put("a/k", b"")
    store.delete("a/k")
    store.delete("a/k")
    store.delete("never/was")
    assert list(store.list()) == []


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "a:b", "a\nb", "a\0b"]
)
def test_a_key_that_some_store_could_not_hold_is_refused_by_all(store: Store, key: str) -> None:
    for use in (store.get, store.head, store.delete, lambda key: store.put(key, b"")):
        with pytest.raises(StoreError, match="key"):
            use(key)


_PARTS = st.text("abz019-_ é日'()", min_size=1, max_size=12).filter(lambda part: part[-1] != " ")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(parts=st.lists(_PARTS, min_size=1, max_size=3), data=st.binary(max_size=3000), number=st.integers(0, 10**12))
def test_any_valid_key_holds_any_bytes(store: Store, parts: list[str], data: bytes, number: int) -> None:
    key = f"p{number}/" + "/".join(parts) + "/end"
    store.put(key, data)
    assert store.get(key).data == data
    assert key in list(store.list(f"p{number}/"))
    store.delete(key)


def test_the_probe_accepts_the_store_and_leaves_nothing(store: Store) -> None:
    probe_conditional_writes(store)
    assert list(store.list()) == []


@pytest.mark.s3
def test_two_s3_prefixes_do_not_meet(seaweedfs: LocalSeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    one, other = (open_store(f"s3://{seaweedfs.bucket}/{name}") for name in ("apart", "apart2/"))
    one.put("k", b"1")
    other.put("k", b"2")
    assert (one.get("k").data, list(one.list())) == (b"1", ["k"])


@pytest.mark.s3
@pytest.mark.parametrize(
    ("variable", "advice"), [("AWS_SECRET_ACCESS_KEY", "SECRET_ACCESS_KEY"), ("AWS_ACCESS_KEY_ID", "ACCESS_KEY_ID")]
)
def test_wrong_credentials_are_explained_without_being_told(
    seaweedfs: LocalSeaweedFS, monkeypatch: pytest.MonkeyPatch, variable: str, advice: str
) -> None:
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(variable, "hunter2hunter2")
    store = open_store(f"s3://{seaweedfs.bucket}/x")
    with pytest.raises(AccessError, match=advice) as caught:
        store.put("k", b"")
    assert "hunter2" not in f"{caught.value} {caught.value.facts}"


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_explained(seaweedfs: LocalSeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AccessError, match="no such bucket"):
        list(open_store("s3://no-such-bucket-here/x").list())


@pytest.mark.s3
def test_bytes_that_changed_behind_our_back_are_not_returned(
    seaweedfs: LocalSeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.put_object(
        Bucket=seaweedfs.bucket, Key="torn/k", Body=b"other bytes", Metadata={"omnifarm-sha256": "0" * 64}
    )
    client.close()
    with pytest.raises(StoreError, match="does not match its SHA-256"):
        open_store(f"s3://{seaweedfs.bucket}/torn").get("k")


@pytest.mark.s3
def test_a_refused_object_leaves_no_parts_behind(seaweedfs: LocalSeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{seaweedfs.bucket}/parts")
    store.put("k", b"small")
    with pytest.raises(PreconditionError):
        store.put("k", bytes(PART_BYTES + 1), if_none_match=True)
    client = boto3.client("s3")
    assert client.list_multipart_uploads(Bucket=seaweedfs.bucket).get("Uploads", []) == []
    client.close()
    assert store.get("k").data == b"small"


@pytest.mark.s3
def test_erasing_leaves_no_older_version_in_a_bucket_that_keeps_them(
    seaweedfs: LocalSeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    store = open_store("s3://versioned/farm")
    for text in (b"one", b"two"):
        store.put("face", text)
        store.put("face2", text)
    store.delete("face2")

    def kept(key: str) -> int:
        answer = client.list_object_versions(Bucket="versioned", Prefix=f"farm/{key}")
        entries = [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]
        return sum(entry["Key"] == f"farm/{key}" for entry in entries)

    assert kept("face2") == 3, "a plain delete only hides it"
    assert (list(store.list("fa")), sorted(store.erasable("fa"))) == (["face"], ["face", "face2"])
    store.erase("face")
    assert (kept("face"), kept("face2")) == (0, 3)
    store.erase("face2")
    assert kept("face2") == 0
    client.close()
