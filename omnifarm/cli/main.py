"""`omnifarm <noun> <verb>`: the nouns, and what happens when a command fails.

Nouns import what they need inside their commands, so that `--help` answers at once.
"""

import sys

import typer
from rich.console import Console

from omnifarm.cli import backbone, bench, concept, demo, farm, miniature, perf, serve, studio, tenant, train
from omnifarm.errors import OmniFarmError

app = typer.Typer(
    name="omnifarm",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Teach a frozen unified multimodal model your own things: ten photos and a few facts in, and it
recognises, describes, draws and edits `<maeve>` from then on.

Start here: `omnifarm demo run` learns a handful of drawn concepts on this machine and shows them.
Your own: write a folder with photos and a `concept.yaml`, check it with `omnifarm concept validate FOLDER`,
then `omnifarm train local --concepts FOLDER --store build/store` (or the cluster job, jobs/train_concepts.py) and `omnifarm serve --store build/store`.""",
)
app.add_typer(demo.app, name="demo", help="Learn several concepts on a local cluster and look at the result.")
app.add_typer(
    concept.app,
    name="concept",
    help="Check and import concept folders, find hard negatives; list and delete what was learned.",
)
app.add_typer(train.app, name="train", help="Learn concepts in this process, without a cluster.")
app.add_typer(farm.app, name="farm", help="See what the farm is doing.")
app.add_typer(tenant.app, name="tenant", help="Who may use a server: tenants and their keys.")
app.add_typer(backbone.app, name="backbone", help="Inspect a backbone and hold it to golden vectors.")
app.add_typer(miniature.app, name="miniature", help="The embedded drawn world: write fresh concepts to learn.")
app.add_typer(bench.app, name="bench", help="Score concepts on OmniPBench: the paper's table, measured.")
app.add_typer(perf.app, name="perf", help="Measure speed as ratios, side by side.")
app.command(name="serve")(serve.serve)
app.command(name="studio")(studio.studio)


def run() -> None:
    """Entry point of the `omnifarm` program.

    Errors that a user can cause are printed as one message on standard error with exit code 1; anything else is
    our own mistake and keeps its traceback.
    """
    try:
        app()
    except OmniFarmError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _escape(text: str) -> str:
    """Keep square brackets in a message from being read as markup."""
    return text.replace("[", r"\[")


if __name__ == "__main__":
    run()
