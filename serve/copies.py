"""Copies of photographs that jobs learn from: where they lie in a tenant's store, and how much room they take.

    concepts/<name>/<digest>-<bytes>/...     the folder's name tells its size, so that nothing is read to count

A copy stays as long as a job may be learned from it, and its bytes count as those of uploaded files do.
"""

import re

from omnifarm.store.base import Store

PREFIX = "concepts/"
"""Keys of all copies begin with this."""
_FOLDER = re.compile(rf"{PREFIX}[^/]+/[0-9a-f]{{24}}(?:-([0-9]+))?")


def folder_of(name: str, *, digest: str, size_bytes: int) -> str:
    """Return the folder of a copy.

    Args:
        name: The concept's name.
        digest: Of everything in the folder.
        size_bytes: Of everything in the folder together.
    """
    return f"{PREFIX}{name}/{digest[:24]}-{size_bytes}"


def copied_bytes(store: Store) -> int:
    """Return how many bytes all copies in a tenant's store have."""
    folders = {"/".join(key.split("/")[:3]) for key in store.list(PREFIX)}
    matches = [_FOLDER.fullmatch(folder) for folder in folders]
    return sum(int(match[1] or 0) for match in matches if match is not None)


def erase_copy(store: Store, url: str) -> None:
    """Erase a copy; whatever else lies at `url`, such as an owner's own photographs, stays. Safe to repeat."""
    folder = url.removeprefix(f"{store.url.rstrip('/')}/")
    if _FOLDER.fullmatch(folder):
        for key in list(store.erasable(f"{folder}/")):
            store.erase(key)
