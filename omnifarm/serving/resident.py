"""The table of soft tokens that are in memory, on the backbone's device.

The repository in the store holds the truth. A concept is read when it is first asked for and looked up again after
`refresh_s`: a new version replaces the old one and a deleted concept disappears, without a restart. One that nobody
asks for any more is looked for in turn (`forget_deleted`). The least
recently used concept gives way when the table is full; one that a request is using keeps its rows until that
request has ended. Reading happens in the thread that asks, never in the one that steps the model.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from omnifarm.backbone.kv_pool import Rows
from omnifarm.clock import Clock
from omnifarm.concept.artifact import ArtifactManifest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokenLayout, SoftTokens
from omnifarm.errors import ConfigError, NotFoundError, UnknownConceptError

Repositories = ConceptRepository | Callable[[str], ConceptRepository]
"""One repository for everybody, or a tenant's own by the tenant's name."""

_FIRST_ROWS = 1024


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Resident:
    """A concept that is in memory; whoever holds this keeps it there."""

    name: str
    """Bare name."""
    tenant: str
    """Whose it is."""
    version: str
    """Identity of the artifact; changes with every new training."""
    manifest: ArtifactManifest
    """What the artifact says about itself."""
    layout: SoftTokenLayout
    """Which of the rows are what."""
    rows: Rows
    """Its rows of the table, in the order of the layout."""

    @property
    def identifier(self) -> str:
        """The name in angle brackets."""
        return f"<{self.name}>"

    @property
    def label(self) -> str:
        """Names this concept among all tenants'."""
        return label_of(self.tenant, self.name)


def label_of(tenant: str, name: str) -> str:
    """Return what names a concept among all tenants'."""
    return f"{tenant}/{name}"


class ResidentConcepts:
    """Soft tokens by tenant and concept name, read through from a repository. Safe to use from several threads.

    Args:
        repositories: Where committed artifacts lie.
        fingerprint: The backbone's; artifacts of another backbone are refused.
        clock: For `refresh_s`.
        width: D, the backbone's.
        dtype: Type of the table.
        device: Where the table lies.
        capacity: Concepts kept in memory, at least 1.
        refresh_s: Seconds after which a concept in use is looked up again.
        on_gone: Told the label of a concept that was deleted or replaced.
    """

    def __init__(
        self,
        repositories: Repositories,
        *,
        fingerprint: str,
        clock: Clock,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        capacity: int = 16384,
        refresh_s: float = 2.0,
        on_gone: Callable[[str], None] = lambda label: None,
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"expected room for at least one concept, found capacity {capacity}")
        self._repositories = repositories
        self._fingerprint, self._clock = fingerprint, clock
        self._capacity, self._refresh_s = capacity, refresh_s
        self._on_gone = on_gone
        self._kept: OrderedDict[tuple[str, str], tuple[Resident, float]] = OrderedDict()
        self._turn: list[tuple[str, str]] = []
        self._lock = threading.RLock()
        self.table = torch.zeros(_FIRST_ROWS, width, dtype=dtype, device=device)
        """(R, D) soft tokens of all residents."""
        self._free = list(range(_FIRST_ROWS - 1, -1, -1))

    def __len__(self) -> int:
        """How many concepts are in memory."""
        return len(self._kept)

    def manifests(self, tenant: str = "", *, after: str = "", limit: int | None = None) -> list[ArtifactManifest]:
        """Return the manifest in use of committed concepts of this backbone, by name.

        Args:
            tenant: Whose.
            after: Only names that come after this one.
            limit: At most so many (>= 1); no others are read, but those of another backbone that lie between.
        """
        own = (one for one in self._repository(tenant).each(after=after) if one.fingerprint == self._fingerprint)
        return list(itertools.islice(own, limit))

    def manifest(self, name: str, *, tenant: str = "") -> ArtifactManifest:
        """Return the manifest in use of one concept; costs the same however many others there are.

        Raises:
            UnknownConceptError: It was never committed for this tenant on this backbone, or was deleted.
            ArtifactError: It is damaged.
        """
        try:
            found = self._repository(tenant).latest(name)
        except NotFoundError:
            raise _unknown(name) from None
        if found.fingerprint != self._fingerprint:
            raise _unknown(name)
        return found

    def get(self, names: Sequence[str], *, tenant: str = "") -> list[Resident]:
        """Return the concepts of these bare names, in order; they stay while the caller holds them.

        Raises:
            UnknownConceptError: One of them was never committed for this tenant, or was deleted.
            ArtifactError: One of them is damaged or belongs to another backbone.
        """
        return [self._get(tenant, name) for name in names]

    def labels(self) -> set[str]:
        """Return the labels of all concepts that are in memory."""
        with self._lock:
            return {label_of(*place) for place in self._kept}

    def forget(self, name: str, *, tenant: str = "") -> None:
        """Let go of a concept; where it still exists, it is read again when it is asked for. Safe to repeat."""
        with self._lock:
            self._kept.pop((tenant, name), None)
        self._on_gone(label_of(tenant, name))

    def forget_deleted(self, *, limit: int) -> int:
        """Let go of concepts whose version is not in the store any more, whether or not anybody asks for them.

        Args:
            limit: Concepts (>= 1) that are looked for, one small request each; the next call goes on with the others.

        Returns:
            How many were let go of.

        Raises:
            StoreError: The store does not answer; what was not looked for stays.
        """
        with self._lock:
            # A turn is over before the next begins, so that the first ones do not keep the last from being looked for.
            self._turn = self._turn or list(self._kept)
            chosen, self._turn = self._turn[:limit], self._turn[limit:]
        num_gone = 0
        for tenant, name in chosen:
            known = self._kept.get((tenant, name))
            if known is not None and not self._repository(tenant).is_committed(name, known[0].version):
                self.forget(name, tenant=tenant)
                num_gone += 1
        return num_gone

    def give_back(self, ids: list[int]) -> None:
        """Take rows back; called by `Rows` alone."""
        self._free.extend(ids)

    def _repository(self, tenant: str) -> ConceptRepository:
        if isinstance(self._repositories, ConceptRepository):
            return self._repositories
        return self._repositories(tenant)

    def _get(self, tenant: str, name: str) -> Resident:
        now = self._clock.monotonic_s()
        place = (tenant, name)
        with self._lock:
            known = self._kept.get(place)
            if known is not None and now - known[1] < self._refresh_s:
                self._kept.move_to_end(place)
                return known[0]
        # The store is asked without the lock: one slow look-up must not hold up every other request.
        repository = self._repository(tenant)
        try:
            newest = repository.latest(name)
            if known is not None and known[0].version == newest.version:
                resident = known[0]
            else:
                manifest, soft_tokens = repository.load(name, fingerprint=self._fingerprint)
                resident = self._install(tenant, name, manifest, soft_tokens)
        except NotFoundError:
            self.forget(name, tenant=tenant)
            raise _unknown(name) from None
        with self._lock:
            self._kept[place] = (resident, now)
            self._kept.move_to_end(place)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        if known is not None and known[0] is not resident:
            self._on_gone(resident.label)
        return resident

    def _install(self, tenant: str, name: str, manifest: ArtifactManifest, soft_tokens: SoftTokens) -> Resident:
        values = soft_tokens.table()
        with self._lock:
            while len(self._free) < len(values):
                self._grow()
            rows = Rows(self, [self._free.pop() for _ in range(len(values))])
            self.table[rows.index.to(self.table.device)] = values.to(self.table)
        return Resident(
            name=name,
            tenant=tenant,
            version=manifest.version,
            manifest=manifest,
            layout=soft_tokens.layout,
            rows=rows,
        )

    def _grow(self) -> None:
        old = len(self.table)
        # A new tensor, not a resize: a step that is running keeps the one it has.
        self.table = torch.cat((self.table, torch.zeros_like(self.table)))
        self._free[:0] = range(2 * old - 1, old - 1, -1)


def _unknown(name: str) -> UnknownConceptError:
    return UnknownConceptError(
        f"expected a learned concept, found none named <{name}>; train it first or correct the name",
        concept=f"<{name}>",
    )
