"""`omnifarm farm`: see what the farm is doing, from the job records in its store."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from omnifarm.cli.output import Json, print_json, results

app = typer.Typer(no_args_is_help=True)


@app.callback()
def farm() -> None:
    """See what the farm is doing."""


@app.command()
def status(
    store: Annotated[
        str, typer.Option("--store", help="s3://bucket/prefix or a local folder.", envvar="OMNIFARM_STORE")
    ],
    json: Json = False,
) -> None:
    """List every job: its state, step, attempts and, if it failed, why."""
    from omnifarm.clock import SystemClock
    from omnifarm.farm.queue import JobQueue
    from omnifarm.store.open import open_store

    records = JobQueue(open_store(store), clock=SystemClock()).list()
    if json:
        print_json([record.to_json() for record in records])
        return
    table = Table("concept", "state", "step", "attempts", "reason", box=None)
    for record in records:
        table.add_row(
            escape(record.name),
            record.state.value,
            f"{record.step}/{record.num_steps}",
            str(record.attempts),
            escape((record.error or "").splitlines()[0] if record.error else ""),
        )
    results.print(table)
