"""Is this store fit to hold a queue? Try it, rather than believe it.

Some stores that speak S3 accept conditional headers and ignore them: sixteen racing creators then all "win", and two
workers train one concept. The probe races writers once at start and refuses such a store in words.
"""

import secrets
from concurrent.futures import ThreadPoolExecutor

from omnifarm.errors import PreconditionError, StoreError
from omnifarm.store.base import Store


def probe_conditional_writes(store: Store, *, num_racers: int = 8, prefix: str = "probe/") -> None:
    """Check that create-once has one winner and compare-and-swap replaces only what was read.

    Costs about 3 * `num_racers` small requests; leaves nothing behind.

    Args:
        store: The store to try.
        num_racers: Writers that race (>= 2).
        prefix: Where to write the probe objects.

    Raises:
        AccessError: The store cannot be used at all.
        StoreError: The store ignores conditions or gives back other bytes than it was given.
    """
    key = f"{prefix}{secrets.token_hex(8)}"
    try:
        winners = _race(store, key, num_racers=num_racers, etag=None)
        _require(store, len(winners) == 1, f"{len(winners)} of {num_racers} racing creators won, exactly 1 should")
        found = store.get(key)
        _require(store, found.data == winners[0], "the bytes read back are not the winner's")
        winners = _race(store, key, num_racers=num_racers, etag=found.etag)
        _require(store, len(winners) == 1, f"{len(winners)} of {num_racers} compare-and-swaps won, exactly 1 should")
        _require(store, store.get(key).data == winners[0], "the bytes read back are not the winner's")
        _require(store, not _wins(store, key, b"stale", etag=found.etag), "a write over a stale version was accepted")
    finally:
        store.delete(key)
    _require(store, not _wins(store, key, b"gone", etag=found.etag), "a write over a deleted object was accepted")


def _race(store: Store, key: str, *, num_racers: int, etag: str | None) -> list[bytes]:
    values = [f"racer {number} {secrets.token_hex(4)}".encode() for number in range(num_racers)]
    with ThreadPoolExecutor(num_racers) as pool:
        won = list(pool.map(lambda value: _wins(store, key, value, etag=etag), values))
    return [value for value, is_winner in zip(values, won, strict=True) if is_winner]


def _wins(store: Store, key: str, value: bytes, *, etag: str | None) -> bool:
    try:
        store.put(key, value, if_none_match=etag is None, if_match=etag)
    except PreconditionError:
        return False
    return True


def _require(store: Store, is_true: bool, found: str) -> None:
    if not is_true:
        raise StoreError(
            f"{store.url} does not honour conditional writes: {found}. A queue there would train concepts twice; use a "
            "store that does (AWS S3, SeaweedFS 4) or a local folder",
            store=store.url,
        )
