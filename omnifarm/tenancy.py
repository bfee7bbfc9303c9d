"""Who may use a server: tenants, their keys and their limits, as records in the store.

    accounts/<tenant>.json     who may come in, and how much they may have
    tenants/<tenant>/...       everything that is theirs: a store of its own, with artifacts, jobs and files

A key is shown once, when it is made; the record keeps its SHA-256 (a key is 256 random bits, so a slow hash would add
nothing). Whatever a tenant names is looked up in its own part of the store alone: the concepts of others are not
forbidden to it, they do not exist. Knows no HTTP.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, get_args

from omnifarm.clock import Clock
from omnifarm.errors import ConfigError, NotFoundError, PreconditionError, StoreError
from omnifarm.store.base import Store

SCHEMA_VERSION = 1
"""Version of an account's JSON form."""
ACCOUNTS = "accounts/"
"""Keys of all accounts begin with this."""
Scope = Literal["use", "learn", "operate"]
"""use: ask, draw, edit. learn: upload, train, delete. operate: read the server's metrics."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Every scope."""
USUAL_SCOPES: tuple[Scope, ...] = ("use", "learn")
"""Scopes of a key for which nothing else is said: the server's metrics are of all its tenants, so they are not among them."""

_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_KEY = re.compile(r"omf_([a-z0-9][a-z0-9-]{0,31})_([A-Za-z0-9_-]{43})")
_MAX_SWAPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TenantLimits:
    """What one tenant may have and do."""

    requests_per_minute: int = 600
    """Requests a replica takes from the tenant in a minute; a tenth of them may come at once."""
    max_concurrent: int = 16
    """Requests of the tenant that a replica works on at the same time; as many jobs may be watched besides."""
    max_concepts: int = 100
    """Learned concepts."""
    max_jobs: int = 8
    """Unfinished fine-tuning jobs."""
    max_files: int = 2000
    """Uploaded files."""
    max_file_bytes: int = 2 * 2**30
    """Bytes of all uploaded files together, and of the copies that jobs learn from."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 0:
                raise ConfigError(f"expected {name} of a tenant as a whole number of at least 0, found {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredKey:
    """What is kept of a key."""

    key_id: str
    """Eight hex digits by which people name it."""
    digest: str
    """SHA-256 of its secret part, in hex."""
    scopes: tuple[Scope, ...]
    """What it may be used for."""
    created_at_s: float
    """Seconds since the epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """One tenant's record."""

    tenant: str
    """1 to 32 lower-case letters, digits and '-'."""
    keys: tuple[StoredKey, ...] = ()
    """Keys that open the door."""
    limits: TenantLimits = field(default_factory=TenantLimits)
    """What the tenant may have and do."""

    def __post_init__(self) -> None:
        if not _TENANT.fullmatch(self.tenant):
            raise ConfigError(
                "expected a tenant's name of 1 to 32 lower-case letters, digits and '-', beginning with a letter or "
                f"digit, found {self.tenant[:80]!r}"
            )

    def encode(self) -> bytes:
        """Return the record as UTF-8 JSON."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the account in `data`.

        Raises:
            ConfigError: The bytes are no account of this version.
        """
        try:
            values: dict[str, Any] = json.loads(data)
            if values.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError(f"its schema is not {SCHEMA_VERSION}")
            values["keys"] = tuple(StoredKey(**{**key, "scopes": tuple(key["scopes"])}) for key in values["keys"])
            values["limits"] = TenantLimits(**values["limits"])
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"expected a tenant's account, found something else ({error}); create it anew") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who sent a request."""

    tenant: str
    """The tenant; the empty string stands for the owner of the whole store, who needs no key."""
    key_id: str = ""
    """Which key was used."""
    scopes: tuple[Scope, ...] = SCOPES
    """What the key may be used for."""
    limits: TenantLimits = field(default_factory=TenantLimits)
    """What the tenant may have and do."""


class Accounts:
    """Reads and changes accounts. Safe to share between threads and processes.

    Args:
        store: The root store.
        clock: Stamps keys and ages what is remembered.
        refresh_s: Seconds for which what was read is believed: a revoked key works so much longer, a new tenant's first
            key so much later.
    """

    def __init__(self, store: Store, *, clock: Clock, refresh_s: float = 2.0) -> None:
        self._store = store
        self._clock = clock
        self._refresh_s = refresh_s
        self._known: dict[str, tuple[float, Account | None]] = {}
        self._names: tuple[float, frozenset[str]] | None = None

    def create(self, tenant: str, *, limits: TenantLimits | None = None) -> Account:
        """Write a new account without keys.

        Raises:
            ConfigError: The name cannot be used, or the tenant exists.
        """
        account = Account(tenant=tenant, limits=limits or TenantLimits())
        try:
            self._store.put(_key(tenant), account.encode(), if_none_match=True)
        except PreconditionError:
            raise ConfigError(f"tenant {tenant!r} exists already; choose another name or add a key to it") from None
        self._forget()
        return account

    def add_key(self, tenant: str, *, scopes: Iterable[Scope] = USUAL_SCOPES) -> str:
        """Add a key and return it; it cannot be read again.

        Raises:
            ConfigError: There is no such tenant, or a scope does not exist.
        """
        chosen = tuple(dict.fromkeys(scopes))
        if unknown := sorted(set(chosen) - set(SCOPES)):
            raise ConfigError(f"expected scopes among {', '.join(SCOPES)}, found {', '.join(unknown)}")
        secret = secrets.token_urlsafe(32)
        digest = _digest(secret)
        stored = StoredKey(key_id=digest[:8], digest=digest, scopes=chosen, created_at_s=self._clock.now_s())
        self._change(tenant, lambda account: replace(account, keys=(*account.keys, stored)))
        return f"omf_{tenant}_{secret}"

    def revoke(self, tenant: str, key_id: str) -> None:
        """Remove a key; replicas notice within `refresh_s`. Safe to repeat.

        Raises:
            ConfigError: There is no such tenant.
        """
        self._change(
            tenant,
            lambda account: replace(account, keys=tuple(key for key in account.keys if key.key_id != key_id)),
        )

    def list(self) -> list[Account]:
        """Return every account, by name."""
        keys = [key for key in self._store.list(ACCOUNTS) if key.endswith(".json")]
        return [Account.decode(self._store.get(key).data) for key in keys]

    def authenticate(self, key: str) -> Caller | None:
        """Return who holds `key`, or None; the time it takes does not tell how much of a guess was right.

        Raises:
            StoreError: The store does not answer.
        """
        match = _KEY.fullmatch(key)
        account = self._look_up(match.group(1)) if match is not None else None
        found = _digest(match.group(2) if match is not None else key)
        caller = None
        for stored in account.keys if account is not None else ():
            # Every key is compared, also after a hit.
            if hmac.compare_digest(stored.digest, found) and account is not None:
                caller = Caller(
                    tenant=account.tenant, key_id=stored.key_id, scopes=stored.scopes, limits=account.limits
                )
        return caller

    def _look_up(self, tenant: str) -> Account | None:
        now_s = self._clock.monotonic_s()
        known = self._known.get(tenant)
        if known is not None and now_s - known[0] < self._refresh_s:
            return known[1]
        if known is None and tenant not in self._listed(now_s):
            # However many names a stranger guesses: one listing answers for all of them, and none is remembered.
            return None
        try:
            account: Account | None = Account.decode(self._store.get(_key(tenant)).data)
        except NotFoundError:
            account = None
        self._known[tenant] = (now_s, account)
        return account

    def _listed(self, now_s: float) -> frozenset[str]:
        """Return the names of all tenants, as they were at most `refresh_s` ago."""
        if self._names is None or now_s - self._names[0] >= self._refresh_s:
            keys = self._store.list(ACCOUNTS)
            self._names = now_s, frozenset(key.removeprefix(ACCOUNTS).removesuffix(".json") for key in keys)
        return self._names[1]

    def _forget(self) -> None:
        self._known.clear()
        self._names = None

    def _change(self, tenant: str, change: Callable[[Account], Account]) -> None:
        for _ in range(_MAX_SWAPS):
            try:
                found = self._store.get(_key(tenant))
            except NotFoundError:
                raise ConfigError(f"expected a tenant, found none named {tenant[:80]!r}; create it first") from None
            try:
                self._store.put(_key(tenant), change(Account.decode(found.data)).encode(), if_match=found.etag)
            except PreconditionError:
                continue
            self._forget()
            return
        raise StoreError(f"the account of {tenant!r} changes all the time: does the store honour If-Match?")


def tenant_store_url(root_url: str, tenant: str) -> str:
    """Return the URL of a tenant's own store inside the root store; the owner (an empty name) has the root itself."""
    if not tenant:
        return root_url
    if not _TENANT.fullmatch(tenant):
        raise ConfigError(f"expected a tenant's name, found {tenant[:80]!r}")
    return f"{root_url.rstrip('/')}/tenants/{tenant}"


def _key(tenant: str) -> str:
    if not _TENANT.fullmatch(tenant):
        raise ConfigError(f"expected a tenant's name, found {tenant[:80]!r}; see `omnifarm tenant list`")
    return f"{ACCOUNTS}{tenant}.json"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
