"""What belongs to one tenant: its store and everything that is kept in it."""

import threading
from dataclasses import dataclass

from omnifarm.clock import Clock
from omnifarm.concept.repository import ConceptRepository
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import Backbone
from omnifarm.store.base import Store
from omnifarm.store.open import open_store
from omnifarm.tenancy import tenant_store_url
from serve.shelf import Shelf
from serve.tuning import Tuning


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """One tenant's part of the store."""

    tenant: str
    """Whose it is; empty for the owner of the whole store."""
    store: Store
    """The tenant's own store."""
    repository: ConceptRepository
    """Its learned concepts."""
    queue: JobQueue
    """Its jobs."""
    shelf: Shelf
    """Its uploaded files."""
    tuning: Tuning
    """What it asked to be learned."""


class Spaces:
    """Opens tenants' spaces and keeps them. Safe to share between threads.

    Args:
        root_url: URL of the root store.
        backbone: What is learned on, and how.
        clock: Time.
    """

    def __init__(self, root_url: str, *, backbone: Backbone, clock: Clock) -> None:
        self.root = open_store(root_url)
        self._backbone = backbone
        self._clock = clock
        self._open: dict[str, Space] = {}
        self._lock = threading.Lock()

    def of(self, tenant: str) -> Space:
        """Return the space of a tenant whose account exists.

        Raises:
            ConfigError: No tenant can have that name.
        """
        with self._lock:
            if tenant not in self._open:
                self._open[tenant] = self._make(tenant)
            return self._open[tenant]

    def _make(self, tenant: str) -> Space:
        store = open_store(tenant_store_url(self.root.url, tenant)) if tenant else self.root
        shelf = Shelf(store, clock=self._clock)
        return Space(
            tenant=tenant,
            store=store,
            repository=ConceptRepository(store),
            queue=JobQueue(store, clock=self._clock),
            shelf=shelf,
            tuning=Tuning(tenant, root=self.root, store=store, shelf=shelf, backbone=self._backbone, clock=self._clock),
        )
