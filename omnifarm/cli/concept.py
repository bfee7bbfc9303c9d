"""`omnifarm concept`: check folders before training; list, show and delete what was learned."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from omnifarm.cli.output import Json, people, print_json, results

app = typer.Typer(no_args_is_help=True)
StoreUrl = Annotated[
    str, typer.Option("--store", help="s3://bucket/prefix or a local folder.", envvar="OMNIFARM_STORE")
]


@app.command()
def validate(
    path: Annotated[
        str, typer.Argument(help="A concept folder, a folder of them, a UnifyBench folder, or a store URL.")
    ],
    json: Json = False,
) -> None:
    """Name every problem of a concept folder, with what it would have been used for and how to mend it.

    Errors stop a concept from being learned (exit code 1); warnings do not.
    """
    from omnifarm.concept.validate import validate as find_problems

    problems = find_problems(path)
    errors = [problem for problem in problems if problem.severity == "error"]
    if json:
        print_json({"path": path, "ok": not errors, "problems": [problem.to_json() for problem in problems]})
    else:
        for problem in problems:
            colour = "red" if problem.severity == "error" else "yellow"
            results.print(f"[{colour}]{problem.severity}[/]  [bold]{escape(problem.where)}[/]: {escape(problem.what)}")
            results.print(f"       needed by: {escape(problem.consumer)}")
            results.print(f"       to do:     {escape(problem.fix)}")
        results.print(f"{len(errors)} errors, {len(problems) - len(errors)} warnings in {escape(path)}")
    if errors:
        raise typer.Exit(1)


@app.command(name="list")
def list_concepts(store: StoreUrl, json: Json = False) -> None:
    """List the concepts committed to a store, newest version each."""
    from omnifarm.concept.repository import ConceptRepository
    from omnifarm.store.open import open_store

    manifests = ConceptRepository(open_store(store)).list()
    if json:
        print_json([manifest.to_json() for manifest in manifests])
        return
    table = Table("concept", "class", "steps", "version", "backbone", box=None)
    for manifest in manifests:
        table.add_row(
            escape(manifest.identifier),
            escape(manifest.class_noun),
            str(manifest.recipe.get("steps", "?")),
            manifest.version[:12],
            manifest.backbone_fingerprint[:12],
        )
    results.print(table)


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="The concept's name, without angle brackets.")],
    store: StoreUrl,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete every version of a learned concept from a store."""
    from omnifarm.concept.repository import ConceptRepository
    from omnifarm.store.open import open_store

    if not yes:
        typer.confirm(f"Delete every version of <{name}> from {store}?", abort=True)
    num_versions = ConceptRepository(open_store(store)).delete(name)
    people.print(f"deleted {num_versions} versions of <{escape(name)}>")
