"""From a URL to a store: `memory:`, a local path or `file:///path`, `s3://bucket/prefix`.

`OMNIFARM_CACHE` names a folder for copies of what is read from S3, `OMNIFARM_CACHE_GB` (default 10) its size.
"""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from omnifarm.errors import ConfigError
from omnifarm.store.base import Store
from omnifarm.store.cache import CachedStore, RevalidatingStore
from omnifarm.store.local import LocalStore
from omnifarm.store.memory import MemoryStore

_FORMS = "give a folder, file:///folder, s3://bucket/prefix or memory:"


def open_store(url: str) -> Store:
    """Return the store at `url`; touches neither disk nor network, so a wrong password shows at first use.

    Args:
        url: `s3://bucket/prefix` (endpoint, region and credentials come from the usual AWS variables and files),
            `file:///folder`, a local path (`~` is expanded), or `memory:` (a new, empty store each time).

    Raises:
        ConfigError: The URL has another form.
    """
    if not url.strip() or "\0" in url:
        raise ConfigError(f"a store URL must name a place, found {url!r}: {_FORMS}")
    if url in ("memory:", "memory://"):
        return MemoryStore()
    if "://" not in url and not url.startswith(("s3:", "file:", "memory:")):
        return LocalStore(Path(url).expanduser())
    scheme, _, rest = url.partition(":")
    if scheme == "file":
        return LocalStore(_file_path(url))
    if scheme == "s3" and rest.startswith("//"):
        # Imported here: boto3 is slow to load, and a machine that only uses folders need not have it.
        from omnifarm.store.s3 import S3Store

        bucket, _, prefix = rest[2:].partition("/")
        return _with_cache(S3Store(bucket, prefix=prefix))
    raise ConfigError(f"no store speaks {_without_secret(url)!r}: {_FORMS}")


def _with_cache(store: RevalidatingStore) -> Store:
    """Return a distant store, with copies on this machine if its environment says where."""
    folder = os.environ.get("OMNIFARM_CACHE")
    if not folder:
        return store
    text = os.environ.get("OMNIFARM_CACHE_GB", "10")
    try:
        max_bytes = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        max_bytes = 0
    if max_bytes <= 0:
        raise ConfigError(f"OMNIFARM_CACHE_GB is the size of the cache in GB, above 0; found {text[:40]!r}")
    return CachedStore(store, Path(folder).expanduser().absolute(), max_bytes=max_bytes)


def _file_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise ConfigError(f"a file URL is file:///absolute/folder, found {_without_secret(url)!r}")
    path = Path(unquote(parts.path))
    if ".." in path.parts:
        raise ConfigError(f"a file URL names its folder without '..', found {url!r}")
    return path


def _without_secret(url: str) -> str:
    # People paste https://user:password@host; the part before the @ must reach no log.
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
