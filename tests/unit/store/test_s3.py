"""Retries and translations with a scripted client; the rest is held by the contract suite on a real server."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from omnifarm.clock import ManualClock
from omnifarm.errors import AccessError, NotFoundError, PreconditionError, StoreError
from omnifarm.store.multipart import PART_BYTES
from omnifarm.store.s3 import S3Store, is_transient, translate


def client_error(status: int, code: str = "") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "key=hunter2"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )


class FakeBucket:
    """One bucket in memory with conditional writes; the next calls fail as scripted."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str], str]] = {}
        self.calls = 0
        self.script: list[tuple[Exception, bool]] = []
        self.uploads: dict[str, tuple[dict[str, str], dict[int, bytes]]] = {}

    def fail_next(self, *errors: Exception, after_writing: bool = False) -> None:
        self.script += [(error, after_writing) for error in errors]

    def _begin(self) -> tuple[Exception, bool] | None:
        self.calls += 1
        failure = self.script.pop(0) if self.script else None
        if failure and not failure[1]:
            raise failure[0]
        return failure

    def create_multipart_upload(self, *, Metadata: dict[str, str], **_: str) -> dict[str, str]:
        self._begin()
        self.uploads[str(self.calls)] = (Metadata, {})
        return {"UploadId": str(self.calls)}

    def upload_part(self, *, UploadId: str, PartNumber: int, Body: bytes, **_: str) -> dict[str, str]:
        self._begin()
        self.uploads[UploadId][1][PartNumber] = Body
        return {"ETag": f"part {PartNumber}"}

    def complete_multipart_upload(
        self, *, Key: str, UploadId: str, MultipartUpload: dict[str, list[dict[str, Any]]], **wish: str
    ) -> dict[str, str]:
        if UploadId not in self.uploads:
            raise client_error(404, "NoSuchUpload")
        metadata, parts = self.uploads[UploadId]
        numbers = [part["PartNumber"] for part in MultipartUpload["Parts"]]
        assert [part["ETag"] for part in MultipartUpload["Parts"]] == [f"part {number}" for number in numbers]
        try:
            return self.put_object(Key=Key, Body=b"".join(parts[n] for n in numbers), Metadata=metadata, **wish)
        finally:
            if self.objects.get(Key, (b"", {}))[1] == metadata:
                del self.uploads[UploadId]

    def abort_multipart_upload(self, *, UploadId: str, **_: str) -> None:
        if self.uploads.pop(UploadId, None) is None:
            raise client_error(404, "NoSuchUpload")

    def put_object(self, *, Key: str, Body: bytes, Metadata: dict[str, str], **wish: str) -> dict[str, str]:
        failure = self._begin()
        old = self.objects.get(Key)
        if ("IfNoneMatch" in wish and old) or ("IfMatch" in wish and (old is None or old[2] != wish["IfMatch"])):
            raise client_error(412, "PreconditionFailed")
        self.objects[Key] = (Body, Metadata, f'"{self.calls}"')
        if failure:
            raise failure[0]
        return {"ETag": self.objects[Key][2]}

    def head_object(self, *, Key: str, **_: str) -> dict[str, Any]:
        if Key not in self.objects:
            raise client_error(404, "404")
        data, metadata, etag = self.objects[Key]
        return {"ETag": etag, "Metadata": metadata, "ContentLength": len(data)}

    def get_object(self, *, Key: str, **_: str) -> dict[str, Any]:
        return {**self.head_object(Key=Key), "Body": io.BytesIO(self.objects[Key][0])}


@pytest.fixture
def bucket() -> FakeBucket:
    return FakeBucket()


@pytest.fixture
def store(bucket: FakeBucket) -> S3Store:
    store = S3Store("bucket", prefix="p", clock=ManualClock())
    store._client = bucket
    return store


TIMEOUT = ReadTimeoutError(endpoint_url="http://host/?X-Amz-Signature=hunter2")


@pytest.mark.parametrize(
    "error", [client_error(500, "InternalError"), client_error(503, "SlowDown"), client_error(409), TIMEOUT]
)
def test_a_busy_store_is_asked_again(store: S3Store, bucket: FakeBucket, error: Exception) -> None:
    bucket.fail_next(error, error)
    store.put("k", b"data")
    assert (bucket.calls, store.get("k").data) == (3, b"data")


def test_a_store_that_stays_busy_is_given_up(store: S3Store, bucket: FakeBucket) -> None:
    bucket.fail_next(*[client_error(503, "SlowDown")] * 10)
    with pytest.raises(StoreError, match="503 SlowDown"):
        store.put("k", b"data")
    assert bucket.calls == 6


@pytest.mark.parametrize("error", [client_error(500, "InternalError"), TIMEOUT])
def test_a_create_whose_answer_was_lost_knows_that_it_won(store: S3Store, bucket: FakeBucket, error: Exception) -> None:
    bucket.fail_next(error, after_writing=True)
    etag = store.put("k", b"data", if_none_match=True)
    assert store.get("k").etag == etag


def test_a_swap_whose_answer_was_lost_knows_that_it_won(store: S3Store, bucket: FakeBucket) -> None:
    old = store.put("k", b"one")
    bucket.fail_next(TIMEOUT, after_writing=True)
    new = store.put("k", b"two", if_match=old)
    assert (store.get("k").data, store.get("k").etag) == (b"two", new)


def test_equal_bytes_of_another_writer_are_still_another_writer(store: S3Store, bucket: FakeBucket) -> None:
    store.put("k", b"same", if_none_match=True)
    bucket.fail_next(TIMEOUT)
    with pytest.raises(PreconditionError):
        store.put("k", b"same", if_none_match=True)


LARGE = bytes(range(251)) * (2 * PART_BYTES // 251 + 1)


def test_a_large_object_goes_up_in_parts_each_repeated_by_itself(store: S3Store, bucket: FakeBucket) -> None:
    bucket.fail_next(TIMEOUT, client_error(503, "SlowDown"), client_error(500, "InternalError"))
    etag = store.put("k", LARGE)
    assert store.get("k").data == LARGE
    assert store.get("k").etag == etag
    assert bucket.calls == 1 + 3 + 1 + 3, "begin, three parts, end, three repetitions"
    assert bucket.uploads == {}


@pytest.mark.parametrize("condition", [{}, {"if_none_match": True}])
def test_a_large_object_whose_last_answer_was_lost_is_known_to_be_there(
    store: S3Store, bucket: FakeBucket, condition: dict[str, bool]
) -> None:
    store._client = EndLost(bucket)
    etag = store.put("k", LARGE, **condition)  # type: ignore[arg-type]
    assert store.get("k").etag == etag


class EndLost:
    """A bucket whose first end of an upload is done and not answered."""

    def __init__(self, bucket: FakeBucket) -> None:
        self._bucket = bucket
        self._is_lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    def complete_multipart_upload(self, **values: Any) -> dict[str, str]:
        answer = self._bucket.complete_multipart_upload(**values)
        if not self._is_lost:
            self._is_lost = True
            raise TIMEOUT
        return answer


def test_an_upload_that_fails_for_good_is_given_up_whole(store: S3Store, bucket: FakeBucket) -> None:
    store.put("k", b"old")
    with pytest.raises(PreconditionError, match="already exists"):
        store.put("k", LARGE, if_none_match=True)
    assert (bucket.uploads, store.get("k").data) == ({}, b"old")


def test_an_upload_that_somebody_ended_is_an_error(store: S3Store, bucket: FakeBucket) -> None:
    class Swept(EndLost):
        def complete_multipart_upload(self, **values: Any) -> dict[str, str]:
            raise client_error(404, "NoSuchUpload")

    store._client = Swept(bucket)
    with pytest.raises(StoreError):
        store.put("k", LARGE)


def test_missing_credentials_are_not_retried(store: S3Store, bucket: FakeBucket) -> None:
    bucket.fail_next(NoCredentialsError())
    with pytest.raises(AccessError, match="AWS_ACCESS_KEY_ID"):
        store.put("k", b"")
    assert bucket.calls == 1


@pytest.mark.parametrize(
    ("error", "ours", "advice"),
    [
        (client_error(404, "NoSuchKey"), NotFoundError, "check the name"),
        (client_error(404, "NoSuchBucket"), AccessError, "no such bucket"),
        (client_error(403, "RequestTimeTooSkewed"), AccessError, "clock"),
        (client_error(403, "SignatureDoesNotMatch"), AccessError, "AWS_SECRET_ACCESS_KEY"),
        (client_error(403, "AccessDenied"), AccessError, "s3:GetObject"),
        (client_error(400, "ExpiredToken"), AccessError, "expired"),
        (client_error(301, "PermanentRedirect"), AccessError, "AWS_REGION"),
        (client_error(403, "403"), AccessError, "refused"),
        (client_error(412, "PreconditionFailed"), PreconditionError, "not the version"),
        (client_error(501, "NotImplemented"), StoreError, "501 NotImplemented"),
        (EndpointConnectionError(endpoint_url="http://x:hunter2@y"), StoreError, "cannot be reached"),
        (TIMEOUT, StoreError, "ReadTimeoutError"),
    ],
)
def test_every_foreign_error_becomes_ours_with_advice_and_without_secrets(
    error: Exception, ours: type[StoreError], advice: str
) -> None:
    found = translate(error, url="s3://b/p", key="k")
    assert type(found) is ours
    assert advice in str(found)
    assert "hunter2" not in f"{found}{found.facts}"


@pytest.mark.parametrize(
    ("make", "expected"), [(lambda: client_error(403, "AccessDenied"), False), (lambda: client_error(429), True)]
)
def test_only_what_passes_is_retried(make: Callable[[], Exception], expected: bool) -> None:
    assert is_transient(make()) is expected


def test_no_secret_travels_in_the_chain_of_a_network_error(store: S3Store, bucket: FakeBucket) -> None:
    bucket.fail_next(*[TIMEOUT] * 10)
    with pytest.raises(StoreError) as caught:
        store.put("k", b"")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


class VersionedBucket:
    """A bucket that keeps versions and lists them two a page."""

    def __init__(self, versions: list[tuple[str, str]]) -> None:
        self.versions = sorted(versions)
        self.pages = 0

    def list_object_versions(
        self, *, Prefix: str, KeyMarker: str = "", VersionIdMarker: str = "", **_: str
    ) -> dict[str, Any]:
        self.pages += 1
        assert self.pages < 20, "it asks for ever"
        behind = [one for one in self.versions if one[0].startswith(Prefix) and one > (KeyMarker, VersionIdMarker)]
        page = [{"Key": key, "VersionId": version} for key, version in behind[:2]]
        answer = {"Versions": page[:1], "DeleteMarkers": page[1:], "IsTruncated": len(behind) > 2}
        return (
            answer
            if len(behind) <= 2
            else answer | {"NextKeyMarker": page[-1]["Key"], "NextVersionIdMarker": page[-1]["VersionId"]}
        )

    def head_object(self, **_: str) -> dict[str, Any]:
        raise client_error(404, "404")

    def delete_object(self, *, Key: str, VersionId: str, **_: str) -> None:
        self.versions.remove((Key, VersionId))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_every_version_is_erased_and_no_neighbours(store: S3Store, count: int) -> None:
    neighbours = [("p/face2", str(number)) for number in range(7)]
    bucket = VersionedBucket([*neighbours, *(("p/face", str(number)) for number in range(count))])
    store._client = bucket
    store.erase("face")
    assert bucket.versions == neighbours
