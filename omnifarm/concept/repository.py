"""Learned concepts in a store: written once, found by name.

    artifacts/<name>/<version>/soft_tokens.safetensors
    artifacts/<name>/<version>/manifest.json             written last: an artifact without it does not exist
    artifacts/<name>/<version>/losses.parquet            every step's losses, for people; may be missing
    artifacts/<name>/pinned.json                         the version to use until a newer one is committed; may be missing

A version is the digest of what the concept was learned from, so the same job writes the same key. Committing is safe
to repeat and to race: exactly one writer wins, and the others are told that it is done.
"""

import contextlib
import itertools
import json
import operator
import re
from collections.abc import Iterable, Iterator, Sequence

from omnifarm.concept.artifact import (
    MAX_MANIFEST_BYTES,
    MAX_TENSOR_BYTES,
    ArtifactManifest,
    check_name,
    decode_manifest,
    decode_soft_tokens,
    encode_manifest,
    encode_soft_tokens,
    tensors_digest,
)
from omnifarm.concept.soft_tokens import SoftTokenLayout, SoftTokens
from omnifarm.errors import ArtifactError, NotFoundError, PreconditionError
from omnifarm.store.base import Store

PREFIX = "artifacts/"
"""Keys of all artifacts begin with this."""
TENSORS_FILE = "soft_tokens.safetensors"
"""Name of the tensors' object."""
MANIFEST_FILE = "manifest.json"
"""Name of the manifest's object."""
CURVE_FILE = "losses.parquet"
"""Name of the loss curves' object."""
PIN_FILE = "pinned.json"
"""Name of the object that pins a concept to a version."""

_MAX_SWAPS = 10
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


# Spelled here because inside the class `list` is a method.
_Manifests = Sequence[ArtifactManifest]
_Found = list[ArtifactManifest]


class ConceptRepository:
    """Learned concepts of one store. Safe for concurrent use as far as the store is.

    Args:
        store: Holds the artifacts.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def commit(self, manifest: ArtifactManifest, soft_tokens: SoftTokens, *, curve: bytes | None = None) -> bool:
        """Store an artifact for good.

        Args:
            manifest: Its `tensors_digest`, counts and width must fit `soft_tokens` (see `manifest_for`).
            soft_tokens: The learned vectors.
            curve: Every step's losses as parquet, to lie beside them.

        Returns:
            True when this call wrote it, False when the version was already committed (by whomever).

        Raises:
            ArtifactError: Manifest and soft tokens do not fit each other.
            StoreError: The store failed; nothing is committed, and the call may be repeated.
        """
        data = encode_soft_tokens(soft_tokens)
        _require_fit(manifest, soft_tokens, digest=tensors_digest(data))
        folder = _folder(manifest.name, manifest.version)
        if self.is_committed(manifest.name, manifest.version):
            return False
        # Tensors lie under their own digest until the manifest names them, so two racing writers with different
        # rounding cannot leave one's manifest over the other's tensors.
        self._store.put(folder + tensors_file(manifest.tensors_digest), data)
        try:
            self._store.put(folder + MANIFEST_FILE, encode_manifest(manifest), if_none_match=True)
        except PreconditionError:
            return False
        if curve is not None:
            # For people, not part of the artifact: the winner alone writes it, and nothing depends on it.
            self._store.put(folder + CURVE_FILE, curve)
        return True

    def is_committed(self, name: str, version: str) -> bool:
        """Return whether this version exists."""
        try:
            self._store.head(_folder(name, version) + MANIFEST_FILE)
        except NotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """Return the names of all committed concepts, sorted."""
        return sorted({name for name, _ in self._versions()})

    def list(self) -> list[ArtifactManifest]:
        """Return the manifest in use of every concept, by name; damaged manifests are passed over."""
        return list(self.each())

    def each(self, *, after: str = "") -> Iterator[ArtifactManifest]:
        """Yield what `list` returns, of the concepts whose names come after `after`; reads one when it comes to it."""
        versions = sorted(key for key in self._versions() if key[0] > after)
        for _, keys in itertools.groupby(versions, key=operator.itemgetter(0)):
            found = self._sound(keys)
            if found:
                yield self._in_use(found)

    def versions(self, name: str) -> _Manifests:
        """Return the manifests of every version of a concept, newest first; damaged ones are passed over."""
        check_name(name)
        return sorted(self._sound(self._versions(name)), key=_age, reverse=True)

    def latest(self, name: str) -> ArtifactManifest:
        """Return the manifest in use: the newest, unless an older one was pinned since.

        Raises:
            NotFoundError: No version of it is committed.
            ArtifactError: A manifest is damaged.
        """
        check_name(name)
        manifests = [self.manifest(*key) for key in self._versions(name)]
        if not manifests:
            raise _no_concept(name)
        return self._in_use(manifests)

    def roll_back(self, name: str, version: str) -> ArtifactManifest:
        """Use this version of a concept from now on, until a newer one than those of today is committed.

        Raises:
            NotFoundError: It is not committed, or was deleted meanwhile with all others.
            PreconditionError: Others rolled the concept back at the same moment, again and again.
        """
        manifest = self.manifest(name, version)
        for _ in range(_MAX_SWAPS):
            # Looked at before the versions: another rollback may know of a newer one than we do, and turn away from it.
            etag = self._pin_etag(name)
            versions = self.versions(name)
            if not versions:
                raise _no_concept(name)
            newest = versions[0]
            pin = {"version": version, "instead_of": newest.version, "instead_of_s": newest.created_at_s}
            with contextlib.suppress(PreconditionError):
                self._store.put(_pin_key(name), json.dumps(pin).encode(), if_none_match=etag is None, if_match=etag)
                return manifest
        raise PreconditionError(
            f"expected to roll <{name}> back to {version}, found that others did so at each of {_MAX_SWAPS} tries; look at "
            "`omnifarm concept history`, then repeat it",
            concept=name,
        )

    def _pin_etag(self, name: str) -> str | None:
        try:
            return self._store.head(_pin_key(name)).etag
        except NotFoundError:
            return None

    def _sound(self, keys: Iterable[tuple[str, str]]) -> _Found:
        """Return the manifests of these names and versions that can be read."""
        found: _Found = []
        for name, version in keys:
            # One damaged object must not hide every other concept; loading it by name says what is wrong.
            with contextlib.suppress(ArtifactError, NotFoundError):
                found.append(self.manifest(name, version))
        return found

    def _in_use(self, manifests: _Manifests) -> ArtifactManifest:
        newest = max(manifests, key=_age)
        if len(manifests) == 1:
            return newest
        try:
            pin = json.loads(self._store.get(_pin_key(newest.name)).data)
        except (NotFoundError, ValueError):
            return newest
        pinned = [one for one in manifests if one.version == pin.get("version")]
        # By age, not by name: when the version that was rolled back from is deleted, those before it are no news.
        is_held = newest.version == pin.get("instead_of") or newest.created_at_s <= pin.get("instead_of_s", 0.0)
        return pinned[0] if pinned and is_held else newest

    def manifest(self, name: str, version: str) -> ArtifactManifest:
        """Return the manifest of one version.

        Raises:
            NotFoundError: It is not committed.
            ArtifactError: It is damaged or lies under the wrong key.
        """
        key = _folder(name, version) + MANIFEST_FILE
        data = self._store.get(key).data
        manifest = decode_manifest(data[: MAX_MANIFEST_BYTES + 1], where=key)
        if (manifest.name, manifest.version) != (name, version):
            raise ArtifactError(
                f"{key}: expected the manifest of {name} {version}, found {manifest.name} {manifest.version}; "
                "it was copied from elsewhere: train the concept again"
            )
        return manifest

    def load(self, name: str, *, fingerprint: str, version: str | None = None) -> tuple[ArtifactManifest, SoftTokens]:
        """Return one learned concept.

        Args:
            name: Without brackets.
            fingerprint: Of the backbone that is to use it.
            version: None takes the newest.

        Raises:
            NotFoundError: It is not committed.
            ArtifactError: It was learned for another backbone, or is damaged.
        """
        manifest = self.latest(name) if version is None else self.manifest(name, version)
        if manifest.fingerprint != fingerprint:
            raise ArtifactError(
                f"concept {name!r} was learned for the backbone {manifest.fingerprint[:12]}, found the backbone "
                f"{fingerprint[:12]} loaded; load that backbone, or train the concept for this one",
                concept=name,
                expected=manifest.fingerprint,
                found=fingerprint,
            )
        key = _folder(name, manifest.version) + tensors_file(manifest.tensors_digest)
        data = self._store.get(key).data
        if len(data) <= MAX_TENSOR_BYTES and tensors_digest(data) != manifest.tensors_digest:
            raise ArtifactError(
                f"{key}: expected the digest {manifest.tensors_digest[:12]}, found {tensors_digest(data)[:12]}; "
                "the file was changed: train the concept again",
                concept=name,
            )
        layout = SoftTokenLayout(num_und=manifest.num_und, num_gen=manifest.num_gen, is_coupled=manifest.is_coupled)
        return manifest, decode_soft_tokens(data, layout=layout, width=manifest.width, where=key)

    def delete(self, name: str, *, version: str | None = None) -> int:
        """Delete one version of a concept, or every one, for good; return how many there were. Safe to repeat."""
        check_name(name)
        folder = f"{PREFIX}{name}/" if version is None else _folder(name, version)
        versions = [known for known in self._versions(name) if version in (None, known[1])]
        # Manifests first: from then on nobody finds the tensors.
        keys = sorted(self._store.erasable(folder), key=lambda key: not key.endswith(f"/{MANIFEST_FILE}"))
        for key in keys:
            self._store.erase(key)
        return len(versions)

    def _versions(self, name: str | None = None) -> Sequence[tuple[str, str]]:
        found = []
        for key in self._store.list(PREFIX if name is None else f"{PREFIX}{name}/"):
            parts = key.removeprefix(PREFIX).split("/")
            if len(parts) == 3 and parts[2] == MANIFEST_FILE:
                found.append((parts[0], parts[1]))
        return found


def _folder(name: str, version: str) -> str:
    check_name(name)
    if not _VERSION.fullmatch(version):
        raise ArtifactError(f"a version is 1 to 128 letters, digits, '_', '.' or '-', found {version[:80]!r}")
    return f"{PREFIX}{name}/{version}/"


def _no_concept(name: str) -> NotFoundError:
    return NotFoundError(f"no learned concept named {name!r} in the store; train it first", concept=name)


def _pin_key(name: str) -> str:
    return f"{PREFIX}{name}/{PIN_FILE}"


def tensors_file(digest: str) -> str:
    """Return the name of the object with the soft tokens of this digest."""
    stem, _, suffix = TENSORS_FILE.partition(".")
    return f"{stem}-{digest[:16]}.{suffix}"


def _age(manifest: ArtifactManifest) -> tuple[float, str]:
    return manifest.created_at_s, manifest.version


def _require_fit(manifest: ArtifactManifest, soft_tokens: SoftTokens, *, digest: str) -> None:
    layout = soft_tokens.layout
    promised = (manifest.num_und, manifest.num_gen, manifest.width, manifest.is_coupled, manifest.tensors_digest)
    found = (layout.num_und, layout.num_gen, soft_tokens.width, layout.is_coupled, digest)
    if promised != found:
        raise ArtifactError(f"manifest of {manifest.name!r} promises {promised}, the soft tokens are {found}")
