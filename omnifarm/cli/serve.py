"""`omnifarm serve`: put a store's concepts behind HTTP on this machine."""

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from omnifarm.cli.output import people
from omnifarm.errors import ConfigError


def serve(
    store: Annotated[
        str, typer.Option("--store", help="s3://bucket/prefix or a local folder.", envvar="OMNIFARM_STORE")
    ],
    backbone: Annotated[
        str,
        typer.Option("--backbone", help="`miniature`, a checkpoint folder or a hub id.", envvar="OMNIFARM_BACKBONE"),
    ] = "miniature",
    keys: Annotated[
        bool, typer.Option("--keys/--no-keys", help="Ask for tenants' keys (`omnifarm tenant create`).")
    ] = False,
) -> None:
    """Serve the concepts of a store over HTTP (loopback, port 8000), and learn what is uploaded; Ctrl-C stops it.

    The same as `serve run serve.app:app` with `OMNIFARM_STORE`, `OMNIFARM_BACKBONE` and `OMNIFARM_ACCESS` set. Without
    `--keys` every request from this machine acts for the whole store.
    """
    program, environment = serving(store, backbone=backbone, keys=keys)
    people.print("starting; the endpoints will be described at http://127.0.0.1:8000/docs, the studio is at /studio")
    raise typer.Exit(subprocess.call(program, env=environment))


def serving(store: str, *, backbone: str, keys: bool) -> tuple[list[str], dict[str, str]]:
    """Return the command line that serves a store on this machine, and its environment.

    Args:
        store: `s3://bucket/prefix` or a local folder.
        backbone: `miniature`, a checkpoint folder or a hub id.
        keys: Whether every request needs a tenant's key.

    Raises:
        ConfigError: The current folder is no checkout.
    """
    checkout = Path.cwd()
    if not (checkout / "serve" / "app.py").is_file():
        raise ConfigError(
            f"expected serve/app.py in the current folder, found none in {checkout}; run this from a checkout of OmniFarm"
        )
    local = "://" not in store and not store.startswith("memory:")
    environment = {
        **os.environ,
        "OMNIFARM_STORE": str(Path(store).resolve()) if local else store,
        "OMNIFARM_BACKBONE": backbone,
        "OMNIFARM_ACCESS": "keys" if keys else "owner",
        # The proxy's own refusals get the shape of ours; it must find them wherever it runs.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")])),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    if "RAY_ADDRESS" not in environment:
        # The cluster started here gets a token of its own. Ray would otherwise leave one in the user's home, and every
        # later cluster of theirs would demand it.
        environment.setdefault("RAY_AUTH_MODE", "token")
        environment.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    return [sys.executable, "-m", "ray.serve.scripts", "run", "serve.app:app"], environment
