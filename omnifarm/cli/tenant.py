"""`omnifarm tenant`: who may use a server, and with which keys."""

from typing import Annotated, Any

import typer
from rich.table import Table

from omnifarm.cli.output import Json, people, print_json, results

app = typer.Typer(no_args_is_help=True)
Store = Annotated[str, typer.Option("--store", help="s3://bucket/prefix or a local folder.", envvar="OMNIFARM_STORE")]
Name = Annotated[str, typer.Argument(help="The tenant: 1 to 32 lower-case letters, digits and '-'.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        help="use, learn or operate; repeat it. Default: use and learn. operate reads metrics of the whole server.",
    ),
]


@app.callback()
def tenant() -> None:
    """Create tenants, give them keys and take keys back."""


@app.command()
def create(
    name: Name,
    store: Store,
    scope: Scopes = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests a replica takes a minute.")] = None,
    max_concepts: Annotated[int | None, typer.Option(min=0, help="Learned concepts.")] = None,
    json: Json = False,
) -> None:
    """Create a tenant and print its first key; the key cannot be shown again."""
    from omnifarm.tenancy import TenantLimits

    given = {"requests_per_minute": requests_per_minute, "max_concepts": max_concepts}
    accounts = _accounts(store)
    accounts.create(name, limits=TenantLimits(**{key: value for key, value in given.items() if value is not None}))
    _show_key(accounts, name, scope, as_json=json)


@app.command("add-key")
def add_key(name: Name, store: Store, scope: Scopes = None, json: Json = False) -> None:
    """Give a tenant one more key and print it."""
    _show_key(_accounts(store), name, scope, as_json=json)


@app.command()
def revoke(
    name: Name, key_id: Annotated[str, typer.Argument(help="As `omnifarm tenant list` shows it.")], store: Store
) -> None:
    """Take a key back; running servers notice within seconds."""
    _accounts(store).revoke(name, key_id)
    people.print(f"{name}: key {key_id} opens nothing any more")


@app.command("list")
def list_tenants(store: Store, json: Json = False) -> None:
    """List tenants, their keys by id, and their limits."""
    from dataclasses import asdict

    found = _accounts(store).list()
    if json:
        shown = [asdict(account) for account in found]
        for account in shown:
            for key in account["keys"]:
                del key["digest"]
        print_json(shown)
        return
    table = Table("tenant", "keys", "concepts at most", "requests a minute", box=None)
    for account in found:
        keys = ", ".join(f"{key.key_id} ({'+'.join(key.scopes)})" for key in account.keys)
        table.add_row(account.tenant, keys, str(account.limits.max_concepts), str(account.limits.requests_per_minute))
    results.print(table)


def _accounts(store: str) -> Any:
    from omnifarm.clock import SystemClock
    from omnifarm.store.open import open_store
    from omnifarm.tenancy import Accounts

    return Accounts(open_store(store), clock=SystemClock())


def _show_key(accounts: Any, name: str, scopes: list[str] | None, *, as_json: bool) -> None:
    from omnifarm.tenancy import USUAL_SCOPES

    chosen = list(scopes or USUAL_SCOPES)
    key = accounts.add_key(name, scopes=chosen)
    if as_json:
        print_json({"tenant": name, "key": key, "scopes": chosen})
        return
    people.print("keep this key; it cannot be shown again:")
    results.print(key, highlight=False, soft_wrap=True)
