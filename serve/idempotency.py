"""Doing a thing once although it is asked twice: replies kept under the client's `Idempotency-Key`.

    idempotency/<digest of the key>.json     in the tenant's own store, for a day

The first request claims the key by a create-once write; one that comes while it works gets 409, one that comes after
gets the same reply, and one with another body gets 422. A claim whose replica died is open again when it expires.
Only successes are kept: a request that failed may be tried again under its key. A reply may hold a person's picture, so
what goes is erased, older versions too.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread

from omnifarm.clock import Clock
from omnifarm.errors import NotFoundError, PreconditionError, RequestError
from omnifarm.store.base import Store
from serve.errors import ConflictError

PREFIX = "idempotency/"
"""Keys of all kept replies begin with this."""
KEPT_S = 24 * 3600.0
"""Seconds for which a reply is kept."""
CLAIM_S = 600.0
"""Seconds after which a claim without a reply is void."""
MAX_REPLY_BYTES = 32 * 2**20
"""A larger reply is not kept."""

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
Reply = dict[str, Any]
"""A JSON object."""


async def once(
    key: str | None,
    *,
    route: str,
    digest: str,
    store: Store,
    clock: Clock,
    work: Callable[[], Awaitable[Reply]],
) -> Reply:
    """Return the reply of `work`, or the one it gave before under the same key.

    Args:
        key: The client's `Idempotency-Key`; None just does the work.
        route: Which endpoint; the same key elsewhere is another key.
        digest: Of the request's content.
        store: The tenant's own store.
        clock: For claims and their end.
        work: Does what was asked.

    Raises:
        RequestError: The key is malformed, or belongs to another request.
        ConflictError: The first request with this key is still under way.
    """
    if key is None:
        return await work()
    if not _KEY.fullmatch(key):
        raise RequestError("expected an Idempotency-Key of 1..255 printable ASCII characters, found another")
    place = f"{PREFIX}{hashlib.sha256(f'{route} {key}'.encode()).hexdigest()}.json"
    claim, kept = await anyio.to_thread.run_sync(_claim, store, place, digest, clock.now_s())
    if kept is not None:
        return kept
    try:
        reply = await work()
    except BaseException:
        # Also when the client left: the next try with this key does the work.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(store.erase, place)
        raise
    record = json.dumps({"digest": digest, "until_s": clock.now_s() + KEPT_S, "reply": reply}).encode()
    if len(record) <= MAX_REPLY_BYTES:
        await anyio.to_thread.run_sync(_keep, store, place, record, claim)
    else:
        await anyio.to_thread.run_sync(store.erase, place)
    return reply


def sweep(store: Store, *, now_s: float) -> int:
    """Erase replies and claims whose time is over, and what older versions of such are left; return how many."""
    count = 0
    for key in list(store.erasable(PREFIX)):
        try:
            is_over = json.loads(store.get(key).data)["until_s"] <= now_s
        except NotFoundError:
            is_over = True
        if is_over:
            store.erase(key)
            count += 1
    return count


def forget_replies(store: Store) -> None:
    """Erase every kept reply of a tenant, and claims, so that what is under way is not kept either."""
    for key in list(store.erasable(PREFIX)):
        store.erase(key)


def _claim(store: Store, place: str, digest: str, now_s: float) -> tuple[str, Reply | None]:
    """Return the etag of our claim, or the reply that is kept."""
    claim = json.dumps({"digest": digest, "until_s": now_s + CLAIM_S, "reply": None}).encode()
    try:
        return store.put(place, claim, if_none_match=True), None
    except PreconditionError:
        pass
    try:
        found = store.get(place)
    except NotFoundError:  # given up in this moment
        raise _busy() from None
    record = json.loads(found.data)
    if record["until_s"] <= now_s:
        try:
            return store.put(place, claim, if_match=found.etag), None
        except PreconditionError:
            raise _busy() from None
    if record["digest"] != digest:
        raise RequestError(
            "expected the request that came first with this Idempotency-Key, found another; use a new key"
        )
    if record["reply"] is None:
        raise _busy()
    return found.etag, record["reply"]


def _keep(store: Store, place: str, record: bytes, claim: str) -> None:
    # Without its claim, a reply is another's by now, or was to be forgotten.
    with contextlib.suppress(PreconditionError):
        store.put(place, record, if_match=claim)


def _busy() -> ConflictError:
    return ConflictError(
        "the first request with this Idempotency-Key is still under way; ask again for its reply", retry_after_s=1.0
    )
