"""What every store promises: whole objects under plain keys, with conditional writes.

A store knows bytes and names, nothing about concepts or jobs. Everything durable in OmniFarm rests on three promises:
an object is seen whole or not at all, `put(if_none_match=True)` has exactly one winner, and `put(if_match=etag)`
replaces exactly the version that was read. One contract suite holds all implementations to them.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from omnifarm.errors import NotFoundError, PreconditionError, StoreError

MAX_KEY_BYTES = 900
"""Longest key: S3 allows 1,024 bytes, of which a store's own prefix may take the rest."""
MAX_PART_BYTES = 200
"""Longest part between two slashes: file systems allow 255, of which temporary and lock names take some."""

_PART = re.compile(r"[A-Za-z0-9_@+=,~()\[\]{}' !#$&%;\-][A-Za-z0-9_.@+=,~()\[\]{}' !#$&%;\-]*|\.[A-Za-z0-9_\-]+")
_NON_ASCII = re.compile(r"[^\x00-\x7f]")


@dataclass(frozen=True, slots=True)
class Object:
    """An object as read at one moment."""

    data: bytes
    """Its bytes, whole."""
    etag: str
    """Its version; give it to `put(if_match=...)` to replace exactly this version."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of an object without reading its bytes."""

    key: str
    """Its key."""
    size_bytes: int
    """Number of bytes."""
    etag: str
    """Its version."""


class Store(Protocol):
    """Bytes under keys. Safe to share between threads; safe to open many times, from many processes."""

    @property
    def url(self) -> str:
        """Where it is, in the form `open_store` takes; holds no secret."""
        ...

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Write an object whole.

        Args:
            key: Its key, see `check_key`.
            data: Its bytes.
            if_none_match: Write only if there is no object under the key; exactly one of many racing callers wins.
            if_match: Write only if the object's etag is still this one.

        Returns:
            The new etag.

        Raises:
            PreconditionError: The condition did not hold (also for `if_match` when the object is gone).
            AccessError: Credentials or permissions are wrong.
            StoreError: Anything else; whether the write happened is then unknown, so read before writing again.
        """
        ...

    def get(self, key: str) -> Object:
        """Read an object whole; raises NotFoundError, and StoreError when its bytes fail their checksum."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Return size and etag; raises NotFoundError."""
        ...

    def list(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> Iterator[str]:
        """Yield keys that start with `prefix`, in ascending order.

        The order is that of code points, except that servers differ in where "a/x" stands beside "a-b" and "a.b":
        names that begin with a sibling folder's name are best avoided where the order matters.

        Args:
            prefix: Plain text, need not end at a slash.
            after: Only keys behind this text, which need not be a key; not the bare name of a folder of keys, because
                SeaweedFS then passes over the whole folder.
            limit: At most so many (>= 1); then the cost does not depend on how many there are.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; safe to repeat, an absent object is no error."""
        ...

    def erasable(self, prefix: str) -> Iterator[str]:
        """Yield keys for which `erase` has something to do: objects, and deleted ones of which older versions are kept.

        Args:
            prefix: Plain text, need not end at a slash.
        """
        ...

    def erase(self, key: str) -> None:
        """Remove an object and every older version of it that the store keeps; safe to repeat."""
        ...


def check_key(key: str) -> str:
    """Return `key` if every store can hold it.

    A key that none can hold is a mistake of ours, not an object that is missing: it is never answered by NotFoundError,
    which would let a mistyped deletion pass as done. Names that strangers send are therefore checked, by the rule for
    such names, before they become part of a key.

    Args:
        key: Parts joined by "/"; a part holds printable characters, but neither ":" nor "\\" nor quotes nor
            wildcards, and is not "." or "..".

    Raises:
        StoreError: The key is empty, absolute, too long, leaves its folder or holds characters some store refuses.
    """
    reason = _refusal(key)
    if reason is not None:
        raise StoreError(
            f"a key is parts of plain characters joined by '/', such as 'jobs/ab12.json'; {key[:120]!r} {reason}",
            key=key[:120],
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it can be the beginning of a key; the same rules, but it may be empty or end anywhere."""
    if not prefix:
        return prefix
    # Any beginning of a valid key passes: "a/" and "a/.x" can go on, so judge them with one more character.
    check_key(prefix + "x")
    return prefix


def content_etag(data: bytes) -> str:
    """Return the etag of stores that name versions by content: the SHA-256 in hex.

    Two writes of the same bytes are one version, so a compare-and-swap whose value returned to an earlier one
    succeeds; records that must not be confused carry a counter.
    """
    return hashlib.sha256(data).hexdigest()


def check_conditions(*, if_none_match: bool, if_match: str | None) -> None:
    """Refuse a put that asks for both conditions: no object can satisfy them."""
    if if_none_match and if_match is not None:
        raise StoreError("put takes if_none_match or if_match, not both: choose create-once or compare-and-swap")


def require_version(url: str, key: str, *, found: str | None, if_none_match: bool, if_match: str | None) -> None:
    """Hold a put to its condition.

    Args:
        url: The store, for the message.
        key: The object, for the message.
        found: Etag of the version that is there, None if there is none.
        if_none_match: See `Store.put`.
        if_match: See `Store.put`.

    Raises:
        PreconditionError: The condition does not hold.
    """
    if if_none_match and found is not None:
        raise already_exists(url, key)
    if if_match is not None and found != if_match:
        raise has_changed(url, key)


def not_found(url: str, key: str) -> NotFoundError:
    """Return the error for an absent object."""
    return NotFoundError(f"no object {key!r} in {url}: check the name, or whether it was deleted", key=key, store=url)


def already_exists(url: str, key: str) -> PreconditionError:
    """Return the error for a lost create-once."""
    return PreconditionError(f"{key!r} already exists in {url}: somebody else created it first", key=key, store=url)


def has_changed(url: str, key: str) -> PreconditionError:
    """Return the error for a lost compare-and-swap."""
    return PreconditionError(
        f"{key!r} in {url} is not the version that was read: read it again and decide anew", key=key, store=url
    )


def _refusal(key: str) -> str | None:
    if not key:
        return "is empty"
    if key.startswith("/"):
        return "is absolute"
    try:
        encoded = key.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if len(encoded) > MAX_KEY_BYTES:
        return f"has {len(encoded)} bytes, at most {MAX_KEY_BYTES} are allowed"
    for part in key.split("/"):
        if part in ("", ".", ".."):
            return f"has the part {part!r}"
        if len(part.encode("utf-8")) > MAX_PART_BYTES:
            return f"has a part of more than {MAX_PART_BYTES} bytes"
        if _NON_ASCII.search(part) and not part.isprintable():
            return "holds characters that do not print"
        if not _PART.fullmatch(_NON_ASCII.sub("x", part)) or part[-1] in " .":
            return f"has the part {part!r} with characters (or an ending) that some store refuses"
    return None
