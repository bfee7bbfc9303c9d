"""A store in an S3 bucket, or in anything that speaks S3 with conditional writes. The only module that knows boto3.

Credentials, region and endpoint come from the usual places (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_REGION`, `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, profiles, instance roles). Every object carries the SHA-256
of its bytes, verified on each read, and the random mark of the write that made it: when an answer is lost and the
repeated conditional write is refused, the mark tells whether the first try had won.
"""

import contextlib
import hashlib
import itertools
import os
import random
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import boto3
import botocore.exceptions
import botocore.loaders
import botocore.session
from botocore.config import Config

from omnifarm.clock import Clock, SystemClock
from omnifarm.errors import AccessError, ConfigError, NotFoundError, PreconditionError, StoreError
from omnifarm.store.base import (
    Object,
    ObjectInfo,
    already_exists,
    check_conditions,
    check_key,
    check_prefix,
    has_changed,
    not_found,
)
from omnifarm.store.multipart import PART_BYTES, put_in_parts

_DIGEST = "omnifarm-sha256"
_MARK = "omnifarm-write"
_MAX_TRIES = 6
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 5.0
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_RETRIED_CODES = frozenset(
    {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException"}
)
# An upload in parts is gone once it is made: a repeated last request finds none.
_KEY_CODES = frozenset({"NoSuchKey", "404", "NotFound", "NoSuchUpload"})
_ADVICE = {
    "InvalidAccessKeyId": "the access key is unknown there: check AWS_ACCESS_KEY_ID and the endpoint",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired: get new credentials",
    "InvalidToken": "the session token is not valid: check AWS_SESSION_TOKEN or unset it",
    "RequestTimeTooSkewed": "this machine's clock is wrong by many minutes: set it by NTP",
    "NoSuchBucket": "there is no such bucket: create it, or correct the URL or the endpoint",
    "AccessDenied": "these credentials may not do that: allow s3:GetObject, PutObject, DeleteObject and ListBucket, "
    "and for deleting for good ListBucketVersions and DeleteObjectVersion",
    "PermanentRedirect": "the bucket lies in another region: set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket lies in another region: set AWS_REGION",
}

# Parsing the service descriptions takes most of a second; once a process is enough.
_LOADER = botocore.loaders.create_loader()

_Answer = TypeVar("_Answer")


class S3Store:
    """Objects of `bucket` under `prefix`. Threads may share it; a forked process must open its own.

    Args:
        bucket: Name of an existing bucket.
        prefix: Put before every key, with a slash between.
        clock: Used for the pauses between tries.

    Raises:
        ConfigError: The names cannot be a bucket and a prefix, or the AWS settings cannot be read.
    """

    def __init__(self, bucket: str, *, prefix: str = "", clock: Clock | None = None) -> None:
        # The bucket may be somebody's mistyped credentials: say the form, not the value, unless it is harmless.
        if not _BUCKET.fullmatch(bucket):
            raise ConfigError(
                "an S3 URL is s3://bucket/prefix with a bucket of 3 to 63 lower-case letters, digits, dots and hyphens; "
                "found another bucket name (credentials do not belong into the URL)"
            )
        prefix = prefix.strip("/")
        if prefix:
            try:
                check_key(prefix)
            except StoreError as error:
                raise ConfigError(f"the prefix of s3://{bucket} must be like a key: {error}") from error
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        self._clock = clock if clock is not None else SystemClock()
        self._random = random.Random(secrets.randbits(64))
        self._lock = threading.Lock()
        self._client = _make_client()

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """See `Store.put`. Refused conditions arrive as 412; racing writers also as 409, which is tried again."""
        check_key(key)
        check_conditions(if_none_match=if_none_match, if_match=if_match)
        mark = secrets.token_hex(8)
        place = {"Bucket": self._bucket, "Key": self._prefix + key}
        metadata = {_DIGEST: hashlib.sha256(data).hexdigest(), _MARK: mark}
        condition: dict[str, str] = {}
        if if_none_match:
            condition["IfNoneMatch"] = "*"
        if if_match is not None:
            condition["IfMatch"] = if_match

        def attempt(call: Callable[[], Any]) -> Any:
            return self._try(call, key)

        try:
            if len(data) > PART_BYTES:
                return put_in_parts(
                    self._client, attempt, place=place, data=data, metadata=metadata, condition=condition
                )
            answer = attempt(lambda: self._client.put_object(**place, Body=data, Metadata=metadata, **condition))
            return str(answer["ETag"])
        except (PreconditionError, NotFoundError):
            won = self._written_by(key, mark)
            if won is not None:
                return won
            if not condition:
                raise
            raise (already_exists if if_none_match else has_changed)(self.url, key) from None

    def get(self, key: str) -> Object:
        """See `Store.get`; objects written by other tools carry no digest and are taken as they are."""
        found = self._get(key, {})
        assert found is not None
        return found

    def get_unless(self, key: str, etag: str) -> Object | None:
        """Return an object as `get` does, or None while its version is still `etag`; one request either way."""
        return self._get(key, {"IfNoneMatch": etag})

    def _get(self, key: str, condition: Mapping[str, str]) -> Object | None:
        check_key(key)

        def read() -> Object | None:
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **condition)
            except botocore.exceptions.ClientError as error:
                if condition and _facts(error)[0] == 304:
                    return None
                raise
            with answer["Body"] as body:
                data = body.read()
            expected = answer["Metadata"].get(_DIGEST)
            if expected is not None and hashlib.sha256(data).hexdigest() != expected:
                raise StoreError(
                    f"{key!r} in {self.url} does not match its SHA-256 {expected[:12]}...: the object is damaged; "
                    "restore it from a backup or delete it",
                    key=key,
                    store=self.url,
                )
            return Object(data, answer["ETag"])

        return self._try(read, key)

    def head(self, key: str) -> ObjectInfo:
        """See `Store.head`."""
        check_key(key)

        def look() -> ObjectInfo:
            answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            return ObjectInfo(key, answer["ContentLength"], answer["ETag"])

        return self._try(look, key)

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        """See `Store.list`; one request per thousand keys, made as the iteration goes on."""
        check_prefix(prefix)
        yield from itertools.islice(self._pages(prefix, after=after, limit=limit), limit)

    def _pages(self, prefix: str, *, after: str, limit: int | None) -> Iterator[str]:
        wish: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if after:
            wish["StartAfter"] = self._prefix + after
        if limit is not None:
            wish["MaxKeys"] = min(limit, 1000)
        while True:
            answer: Any = self._try(lambda: self._client.list_objects_v2(**wish), prefix)
            for entry in answer.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # folder markers of other tools
                    yield entry["Key"][len(self._prefix) :]
            if not answer.get("IsTruncated") or not answer.get("NextContinuationToken"):
                return
            wish["ContinuationToken"] = answer["NextContinuationToken"]

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        check_key(key)
        try:
            self._try(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key), key)
        except NotFoundError:
            return

    def erasable(self, prefix: str) -> Iterator[str]:
        """See `Store.erasable`; a plain listing and one of versions, since a store may list none where it keeps none."""
        check_prefix(prefix)
        seen = set(self.list(prefix))
        yield from sorted(seen)
        for key, _ in self._versions(prefix):
            if key not in seen:
                seen.add(key)
                yield key

    def erase(self, key: str) -> None:
        """See `Store.erase`; in a versioned bucket a plain delete only hides the object behind a marker."""
        check_key(key)
        for found, version in self._versions(key):
            if found != key:
                break  # the listing is in order: no key that begins with this one comes before it
            self._delete_version(key, version)
        with contextlib.suppress(NotFoundError):
            self.head(key)  # a store may list no versions of a bucket that keeps none
            self.delete(key)

    def _versions(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield key and version of everything kept under a prefix, markers of deletion included, keys in order."""
        wish = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}

        def look() -> Any:
            return self._client.list_object_versions(**wish)

        while True:
            answer = self._try(look, prefix)
            entries = [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]
            for entry in sorted(entries, key=lambda entry: str(entry["Key"])):
                yield entry["Key"][len(self._prefix) :], entry["VersionId"]
            if not answer.get("IsTruncated"):
                return
            wish.update(KeyMarker=answer["NextKeyMarker"], VersionIdMarker=answer["NextVersionIdMarker"])

    def _delete_version(self, key: str, version: str) -> None:
        with contextlib.suppress(NotFoundError):
            self._try(
                lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key, VersionId=version), key
            )

    def _written_by(self, key: str, mark: str) -> str | None:
        """Return the etag if the present version is the one this very write made, else None."""
        try:
            answer = self._try(lambda: self._client.head_object(Bucket=self._bucket, Key=self._prefix + key), key)
        except NotFoundError:
            return None
        return str(answer["ETag"]) if answer["Metadata"].get(_MARK) == mark else None

    def _try(self, call: Callable[[], _Answer], key: str) -> _Answer:
        """Run `call`, again after a pause with jitter while the store is busy; translate what stays wrong."""
        for number in range(1, _MAX_TRIES + 1):
            try:
                return call()
            except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
                if number == _MAX_TRIES or not is_transient(error):
                    raise translate(error, url=self.url, key=key) from _without_secrets(error)
            with self._lock:
                share = self._random.random()
            self._clock.sleep_s(share * min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**number))
        raise AssertionError("the last try returns or raises")


def create_bucket(bucket: str, *, environment: Mapping[str, str]) -> None:
    """Create a bucket on a server just started and check that it takes objects; safe to repeat.

    Args:
        bucket: Its name.
        environment: The AWS variables by which the server is reached.

    Raises:
        StoreError: The server does not take objects (yet).
    """
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )
    try:
        with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="warm-up", Body=b"x")
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        raise translate(error, url=f"s3://{bucket}", key="warm-up") from _without_secrets(error)
    finally:
        client.close()


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, botocore.exceptions.ClientError):
        status, code = _facts(error)
        return status in (409, 429) or status >= 500 or code in _RETRIED_CODES
    return isinstance(error, botocore.exceptions.HTTPClientError)


def translate(error: Exception, *, url: str, key: str) -> StoreError:
    """Return our error for one of boto3's; its message holds no credentials and no signed URL."""
    if isinstance(error, botocore.exceptions.ClientError):
        status, code = _facts(error)
        if code in _KEY_CODES:
            return not_found(url, key)
        if status == 412:
            return has_changed(url, key)
        if code in _ADVICE or status in (401, 403):
            advice = _ADVICE.get(code, "access was refused: check credentials, bucket policy and endpoint")
            return AccessError(f"{url}: {advice} (answer {status} {code})", store=url, key=key, code=code)
        return StoreError(
            f"{url} could not serve {key!r}: answer {status} {code} after up to {_MAX_TRIES} tries; "
            "look at the store's own log",
            store=url,
            key=key,
            code=code,
        )
    if isinstance(error, botocore.exceptions.NoCredentialsError | botocore.exceptions.PartialCredentialsError):
        return AccessError(
            f"{url}: no complete AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "a profile, or a role",
            store=url,
        )
    return StoreError(
        f"{url} cannot be reached ({type(error).__name__}): check AWS_ENDPOINT_URL_S3, AWS_REGION and the network",
        store=url,
        key=key,
    )


def _facts(error: botocore.exceptions.ClientError) -> tuple[int, str]:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status, re.sub(r"[^A-Za-z0-9]", "", str(error.response.get("Error", {}).get("Code", "")))[:60]


def _without_secrets(error: Exception) -> Exception | None:
    # A ClientError's text holds the operation and the server's words; the others may hold signed URLs.
    return error if isinstance(error, botocore.exceptions.ClientError) else None


def _make_client() -> Any:
    config = Config(
        # Retries are ours: boto3's would hide that a conditional write was sent twice.
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=10,
        # Silence, not duration: the clock starts anew with every byte that arrives.
        read_timeout=30,
        max_pool_connections=32,
        # Path style works everywhere; stores on an IP address or a bare host know nothing else.
        s3={"addressing_style": "path"} if _has_endpoint() else {},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        core = botocore.session.get_session()
        core.register_component("data_loader", _LOADER)
        session = boto3.session.Session(botocore_session=core)
        return session.client("s3", region_name=session.region_name or "us-east-1", config=config)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise ConfigError(f"the AWS settings cannot be used ({type(error).__name__}): check AWS_* and ~/.aws") from None


def _has_endpoint() -> bool:
    return bool(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
