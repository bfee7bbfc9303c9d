"""The table of soft tokens that are in memory, one row for each concept in use.

The repository in the store holds the truth. A concept is read when it is first asked for and looked up again after
`refresh_s`: a new version replaces the old one and a deleted concept disappears, without a restart. The least
recently used concept gives way when the table is full.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from omnifarm.clock import Clock
from omnifarm.concept.artifact import ArtifactManifest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.errors import ConfigError, NotFoundError, UnknownConceptError


@dataclass(frozen=True, kw_only=True, slots=True)
class Resident:
    """A concept that is in memory."""

    name: str
    """Bare name."""
    version: str
    """Identity of the artifact; changes with every new training."""
    manifest: ArtifactManifest
    """What the artifact says about itself."""
    soft_tokens: SoftTokens
    """und (N_u + 1, D) and gen (N_g, D), float32."""

    @property
    def identifier(self) -> str:
        """The name in angle brackets."""
        return f"<{self.name}>"


class ResidentConcepts:
    """Soft tokens by concept name, read through from a repository. Safe to use from several threads."""

    def __init__(
        self,
        repository: ConceptRepository,
        *,
        fingerprint: str,
        clock: Clock,
        capacity: int = 4096,
        refresh_s: float = 2.0,
    ) -> None:
        """Start with an empty table.

        Args:
            repository: Where committed artifacts lie.
            fingerprint: The backbone's; artifacts of another backbone are refused.
            clock: For `refresh_s`.
            capacity: Concepts kept in memory, at least 1.
            refresh_s: Seconds after which a concept in use is looked up again.
        """
        if capacity < 1:
            raise ConfigError(f"expected room for at least one concept, found capacity {capacity}")
        self._repository = repository
        self._fingerprint = fingerprint
        self._clock = clock
        self._capacity = capacity
        self._refresh_s = refresh_s
        self._table: OrderedDict[str, tuple[Resident, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many concepts are in memory."""
        return len(self._table)

    def manifests(self) -> list[ArtifactManifest]:
        """Return the newest manifest of every committed concept of this backbone, by name."""
        return [entry for entry in self._repository.list() if entry.fingerprint == self._fingerprint]

    def get(self, names: Sequence[str]) -> list[Resident]:
        """Return the concepts of these bare names, in order.

        Raises:
            UnknownConceptError: One of them was never committed, or was deleted.
            ArtifactError: One of them is damaged or belongs to another backbone.
        """
        with self._lock:
            return [self._get(name) for name in names]

    def _get(self, name: str) -> Resident:
        now = self._clock.monotonic_s()
        known = self._table.get(name)
        if known is not None and now - known[1] < self._refresh_s:
            self._table.move_to_end(name)
            return known[0]
        try:
            newest = self._repository.latest(name)
            if known is not None and known[0].version == newest.version:
                resident = known[0]
            else:
                manifest, soft_tokens = self._repository.load(name, fingerprint=self._fingerprint)
                resident = Resident(name=name, version=manifest.version, manifest=manifest, soft_tokens=soft_tokens)
        except NotFoundError:
            self._table.pop(name, None)
            raise UnknownConceptError(
                f"expected a learned concept, found none named <{name}>; train it first or correct the name",
                concept=f"<{name}>",
            ) from None
        self._table[name] = (resident, now)
        self._table.move_to_end(name)
        while len(self._table) > self._capacity:
            self._table.popitem(last=False)
        return resident
