"""Doing a thing once although it is asked twice: replies kept under the client's `Idempotency-Key`.

    idempotency/claims/<digest of the key>.json                 who works under the key, or which reply belongs to it
    idempotency/kept/<until>-<bytes>-<digest>-<owner>.json      a reply; its name tells until when, and how much it takes

Both lie in the tenant's own store. The first request claims the key by a create-once write; one that comes while it works
gets 409, one that comes after gets the same reply, and one with another body gets 422. A claim whose replica died is open
again when it expires. Only successes are kept, for a day, and of one tenant so many bytes that the oldest go first: a
request that failed, or whose reply went, is done again under its key. A reply may hold a person's picture, so what goes is
erased, older versions too.
"""

import contextlib
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from omnifarm.clock import Clock
from omnifarm.errors import NotFoundError, PreconditionError, RequestError, StoreError
from omnifarm.logs import event
from omnifarm.store.base import Store
from serve.errors import ConflictError
from serve.threads import to_the_end

PREFIX = "idempotency/"
"""Keys of all claims and replies begin with this."""
KEPT_S = 24 * 3600.0
"""Seconds for which a reply is kept."""
CLAIM_S = 600.0
"""Seconds after which a claim without a reply is void."""
MAX_REPLY_BYTES = 32 * 2**20
"""A larger reply is not kept."""
MAX_KEPT_BYTES = 512 * 2**20
"""Bytes of all kept replies of a tenant."""

_LOG = logging.getLogger("omnifarm.serve")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_CLAIMS = f"{PREFIX}claims/"
_KEPT = f"{PREFIX}kept/"
_KEPT_NAME = re.compile(rf"{_KEPT}(\d{{12}})-(\d+)-[0-9a-f]+-[0-9a-f]+\.json")
Reply = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Claim:
    """What stands under a key."""

    digest: str
    """Of the request's content."""
    until_s: float
    """When it is void; seconds since the epoch."""
    owner: str
    """Hex digits of who wrote it: two claims of one moment are not the same."""
    reply: str | None
    """Key of the reply, when there is one."""

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


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
    place = f"{_CLAIMS}{hashlib.sha256(f'{route} {key}'.encode()).hexdigest()}.json"
    claim = _Claim(digest=digest, until_s=clock.now_s() + CLAIM_S, owner=secrets.token_hex(8), reply=None)
    try:
        etag, kept = await to_the_end(partial(_take, store, place, claim, clock.now_s()))
        if kept is not None:
            return kept
        reply = await work()
    except BaseException:
        # Also when the client left, be it while the claim was written: the next try with this key does the work.
        await to_the_end(partial(_give_up, store, place, claim))
        raise
    await to_the_end(partial(_keep, store, place, claim, etag, reply, clock.now_s()))
    return reply


def sweep(store: Store, *, now_s: float) -> int:
    """Erase replies and claims whose time is over, and what older versions of such are left; return how many."""
    over = [key for key in store.erasable(PREFIX) if _is_over(store, key, now_s=now_s)]
    for key in over:
        store.erase(key)
    return len(over)


def forget_replies(store: Store) -> None:
    """Erase every kept reply of a tenant, and claims, so that what is under way is not kept either."""
    for key in list(store.erasable(PREFIX)):
        store.erase(key)


def _is_over(store: Store, key: str, *, now_s: float) -> bool:
    name = _KEPT_NAME.fullmatch(key)
    if name is not None and int(name[1]) > now_s:
        # There, or erased before its time: then only older versions are left.
        return next(store.list(key, limit=1), None) != key
    if not key.startswith(_CLAIMS):
        return True
    found = _read(store, key)
    return found is None or found[1].until_s <= now_s


def _take(store: Store, place: str, claim: _Claim, now_s: float) -> tuple[str, Reply | None]:
    """Return the etag of our claim, or the reply that is kept."""
    try:
        return store.put(place, claim.encode(), if_none_match=True), None
    except PreconditionError:
        pass
    found = _read(store, place)
    if found is None:  # given up in this moment
        raise _busy()
    etag, earlier = found
    is_void = earlier.until_s <= now_s
    if not is_void and earlier.digest != claim.digest:
        raise RequestError(
            "expected the request that came first with this Idempotency-Key, found another; use a new key"
        )
    if not is_void and earlier.reply is None:
        raise _busy()
    if not is_void and earlier.reply is not None:
        with contextlib.suppress(NotFoundError):
            reply: Reply = json.loads(store.get(earlier.reply).data)
            return etag, reply
    try:
        return store.put(place, claim.encode(), if_match=etag), None
    except PreconditionError:
        raise _busy() from None


def _keep(store: Store, place: str, claim: _Claim, etag: str, reply: Reply, now_s: float) -> None:
    """Keep a reply, if there is room for it and the claim is still ours; it is given in any case."""
    data = json.dumps(reply).encode()
    if len(data) > MAX_REPLY_BYTES:
        _give_up(store, place, claim)
        return
    until_s = now_s + KEPT_S
    key = f"{_KEPT}{int(until_s):012d}-{len(data)}-{place.removeprefix(_CLAIMS)[:16]}-{claim.owner}.json"
    try:
        _make_room(store, len(data))
        store.put(key, data)
        filed = _Claim(digest=claim.digest, until_s=until_s, owner=claim.owner, reply=key)
        store.put(place, filed.encode(), if_match=etag)
    except StoreError as error:
        # Without its claim, a reply is another's by now, or was to be forgotten.
        if not isinstance(error, PreconditionError):
            event(_LOG, "reply_not_kept", level=logging.WARNING, reason=error.message)
        with contextlib.suppress(StoreError):
            store.erase(key)
        _give_up(store, place, claim)


def _make_room(store: Store, size_bytes: int) -> None:
    """Erase the oldest replies until one of `size_bytes` fits."""
    # In the order of their names, which begin with their time.
    names = [match for key in store.list(_KEPT) if (match := _KEPT_NAME.fullmatch(key)) is not None]
    used = sum(int(name[2]) for name in names)
    for name in names:
        if used + size_bytes <= MAX_KEPT_BYTES:
            return
        store.erase(name[0])
        used -= int(name[2])


def _give_up(store: Store, place: str, claim: _Claim) -> None:
    """Erase our claim, if it is ours."""
    # Where the store does not answer, the claim runs out by itself.
    with contextlib.suppress(StoreError):
        found = _read(store, place)
        if found is not None and found[1].owner == claim.owner:
            store.erase(place)


def _read(store: Store, place: str) -> tuple[str, _Claim] | None:
    try:
        found = store.get(place)
    except NotFoundError:
        return None
    return found.etag, _Claim(**json.loads(found.data))


def _busy() -> ConflictError:
    return ConflictError(
        "the first request with this Idempotency-Key is still under way; ask again for its reply", retry_after_s=1.0
    )
