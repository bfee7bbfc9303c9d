"""Accounts, keys and whose part of the store is whose."""

from dataclasses import replace

import pytest

from omnifarm.clock import ManualClock
from omnifarm.errors import ConfigError
from omnifarm.store.memory import MemoryStore
from omnifarm.tenancy import ACCOUNTS, Account, Accounts, TenantLimits, tenant_store_url


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def accounts(store: MemoryStore, clock: ManualClock) -> Accounts:
    return Accounts(store, clock=clock)


def test_a_key_opens_its_own_tenants_door(accounts: Accounts) -> None:
    accounts.create("acme", limits=TenantLimits(max_jobs=3))
    accounts.create("globex")
    key = accounts.add_key("acme", scopes=["use"])
    caller = accounts.authenticate(key)
    assert caller is not None
    assert (caller.tenant, caller.scopes, caller.limits.max_jobs) == ("acme", ("use",), 3)
    assert accounts.authenticate(key.replace("acme", "globex")) is None
    assert accounts.authenticate(key[:-1] + ("A" if key[-1] != "A" else "B")) is None


def test_a_key_reads_no_metrics_unless_it_was_made_for_that(accounts: Accounts) -> None:
    accounts.create("acme")
    callers = [accounts.authenticate(accounts.add_key("acme", **how)) for how in ({}, {"scopes": ["operate"]})]
    assert [caller and caller.scopes for caller in callers] == [("use", "learn"), ("operate",)]


@pytest.mark.parametrize("key", ["", "omf_", "omf_acme_", "omf_acme_short", "omf_../../x_" + "A" * 43, "é" * 60])
def test_what_is_no_key_opens_nothing(accounts: Accounts, key: str) -> None:
    accounts.create("acme")
    assert accounts.authenticate(key) is None


def test_the_store_holds_no_key(accounts: Accounts, store: MemoryStore) -> None:
    accounts.create("acme")
    secret = accounts.add_key("acme").removeprefix("omf_acme_")
    assert secret.encode() not in store.get(f"{ACCOUNTS}acme.json").data


def test_several_keys_work_until_they_are_revoked(accounts: Accounts, clock: ManualClock) -> None:
    accounts.create("acme")
    first, second = accounts.add_key("acme"), accounts.add_key("acme")
    other = Accounts(accounts._store, clock=clock, refresh_s=2.0)
    found = other.authenticate(first)
    assert found is not None
    accounts.revoke("acme", found.key_id)
    assert accounts.authenticate(first) is None
    assert accounts.authenticate(second) is not None
    # Another process believes what it read for two seconds.
    assert other.authenticate(first) is not None
    clock.advance_s(2.0)
    assert other.authenticate(first) is None


def test_a_tenant_is_created_once(accounts: Accounts) -> None:
    accounts.create("acme")
    with pytest.raises(ConfigError, match="exists already"):
        accounts.create("acme")
    with pytest.raises(ConfigError, match="none named 'nobody'"):
        accounts.add_key("nobody")
    with pytest.raises(ConfigError, match="scopes among"):
        accounts.add_key("acme", scopes=["rule"])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["", "Acme", "a/b", "..", "a_b", "-a", "a" * 33])
def test_a_name_that_could_leave_its_folder_is_refused(accounts: Accounts, name: str) -> None:
    with pytest.raises(ConfigError):
        accounts.create(name)


def test_an_account_survives_its_encoding(accounts: Accounts) -> None:
    accounts.create("acme")
    accounts.add_key("acme")
    (account,) = accounts.list()
    assert Account.decode(account.encode()) == account
    with pytest.raises(ConfigError, match="create it anew"):
        Account.decode(replace(account).encode().replace(b'"schema_version": 1', b'"schema_version": 9'))


def test_each_tenant_has_a_place_of_its_own() -> None:
    assert tenant_store_url("s3://b/farm/", "acme") == "s3://b/farm/tenants/acme"
    assert tenant_store_url("/srv/farm", "") == "/srv/farm"
    with pytest.raises(ConfigError):
        tenant_store_url("/srv/farm", "../x")


def test_guessed_names_cost_one_listing_and_are_not_remembered(
    accounts: Accounts, store: MemoryStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts.create("acme")
    asked: list[str] = []
    listing, get = store.list, store.get
    monkeypatch.setattr(store, "list", lambda prefix: (asked.append("list"), listing(prefix))[1])
    monkeypatch.setattr(store, "get", lambda key: (asked.append(key), get(key))[1])
    for number in range(50):
        assert accounts.authenticate(f"omf_guess{number}_{'A' * 43}") is None
    assert asked == ["list"]
    assert accounts.authenticate(f"omf_acme_{'A' * 43}") is None
    assert asked == ["list", "accounts/acme.json"]
    # A tenant that somebody else creates is known as soon as the list is read again.
    key = (other := Accounts(store, clock=clock)).create("later") and other.add_key("later")
    assert accounts.authenticate(key) is None
    clock.advance_s(2.0)
    caller = accounts.authenticate(key)
    assert caller is not None
    assert caller.tenant == "later"
