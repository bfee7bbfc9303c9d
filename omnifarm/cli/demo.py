"""`omnifarm demo`: the whole path on one machine, ending in a page to look at."""

from pathlib import Path
from typing import Annotated

import typer

from omnifarm.cli.output import Json, people, print_json

app = typer.Typer(no_args_is_help=True)


@app.callback()
def demo() -> None:
    """The whole path on one machine, ending in a page to look at."""


@app.command()
def run(
    concepts: Annotated[
        str | None, typer.Option(help="Your own concept folders; left out, the drawn world provides held-out ones.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the page and its pictures go.")] = Path("build/demo"),
    seed: Annotated[int, typer.Option(help="Which drawn concepts; every seed gives fresh ones.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; left out, the backbone's own recipe.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="`miniature`, a checkpoint folder or a hub id.")] = "miniature",
    json: Json = False,
) -> None:
    """Start a local cluster, learn the concepts by a Ray job, serve them, ask, draw and edit, write a page, stop."""
    from omnifarm.cli.demo_run import run_demo

    summary = run_demo(out, concepts=concepts, seed=seed, steps=steps, backbone=backbone)
    if json:
        print_json(summary)
    people.print(f"[bold]Look at {(out / 'index.html').resolve()}[/]")
