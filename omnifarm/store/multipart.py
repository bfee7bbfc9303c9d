"""Writing a large object to S3 in parts: each is sent, and repeated, by itself, and the last request makes the object.

Nobody sees anything before that last request, and it carries the write's condition, so a large object keeps every
promise of a small one. S3 takes 5 GiB in one request and 10,000 parts.
"""

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from omnifarm.errors import StoreError

PART_BYTES = 16 * 2**20
"""Bytes of a part; S3 allows at least 5 MiB. Objects of up to one part are written in one request."""
_MAX_PARTS = 10_000
_AT_ONCE = 4


class Attempt(Protocol):
    """Runs a request, again while the store is busy, and raises StoreError when it stays wrong."""

    def __call__(self, call: Callable[[], Any]) -> Any:
        """Return what `call` returns."""
        ...


def put_in_parts(
    client: Any,
    attempt: Attempt,
    *,
    place: Mapping[str, str],
    data: bytes,
    metadata: Mapping[str, str],
    condition: Mapping[str, str],
) -> str:
    """Write an object in parts and return its etag; after an error no part is left that we know of.

    Args:
        client: boto3's.
        attempt: Runs each request.
        place: Bucket and Key.
        data: The whole object, more than one part.
        metadata: To lie beside it.
        condition: Nothing, IfNoneMatch or IfMatch; judged when the object is made.

    Raises:
        StoreError: As `attempt` says.
    """
    size = max(PART_BYTES, -(-len(data) // _MAX_PARTS))
    upload = attempt(lambda: client.create_multipart_upload(**place, Metadata=dict(metadata)))["UploadId"]

    def send(number: int) -> dict[str, Any]:
        body = data[(number - 1) * size : number * size]
        answer = attempt(lambda: client.upload_part(**place, UploadId=upload, PartNumber=number, Body=body))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            parts = list(pool.map(send, range(1, -(-len(data) // size) + 1)))
        made = attempt(
            lambda: client.complete_multipart_upload(
                **place, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            )
        )
    except BaseException:
        # Parts of an unfinished object cost money and nobody lists them.
        with contextlib.suppress(StoreError):
            attempt(lambda: client.abort_multipart_upload(**place, UploadId=upload))
        raise
    return str(made["ETag"])
