"""Retries and translations with a scripted client; the rest is held by the contract suite on a real server."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from omnifarm.clock import ManualClock
from omnifarm.errors import AccessError, NotFoundError, PreconditionError, StoreError
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

    def fail_next(self, *errors: Exception, after_writing: bool = False) -> None:
        self.script += [(error, after_writing) for error in errors]

    def put_object(self, *, Key: str, Body: bytes, Metadata: dict[str, str], **wish: str) -> dict[str, str]:
        self.calls += 1
        failure = self.script.pop(0) if self.script else None
        if failure and not failure[1]:
            raise failure[0]
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
