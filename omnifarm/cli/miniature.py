"""`omnifarm miniature`: the embedded drawn world."""

from pathlib import Path
from typing import Annotated

import typer

from omnifarm.cli.output import Json, people, print_json

app = typer.Typer(no_args_is_help=True)


@app.callback()
def miniature() -> None:
    """The embedded drawn world."""


@app.command()
def concepts(
    folder: Annotated[Path, typer.Argument(help="Where to write one folder per concept; must be empty or absent.")],
    seed: Annotated[
        int, typer.Option(help="Which concepts; every seed gives fresh ones, none seen in pre-training.")
    ] = 0,
    persons: Annotated[int, typer.Option(min=0, help="How many persons.")] = 2,
    pets: Annotated[int, typer.Option(min=0, help="How many pets.")] = 2,
    objects: Annotated[int, typer.Option(min=0, help="How many objects.")] = 2,
    json: Json = False,
) -> None:
    """Draw held-out concepts, with photos, facts, questions and edit pairs, as ordinary concept folders."""
    from omnifarm.miniature.benchmark import write_concept_folders

    names = write_concept_folders(folder, seed=seed, num_persons=persons, num_pets=pets, num_objects=objects)
    if json:
        print_json({"folder": str(folder), "concepts": list(names)})
    else:
        people.print(f"wrote {len(names)} concepts to {folder}: {', '.join(names)}")
