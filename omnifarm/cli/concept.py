"""`omnifarm concept`: check folders before training; list, show and delete what was learned."""

import time
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
def history(
    name: Annotated[str, typer.Argument(help="The concept's name, without angle brackets.")],
    store: StoreUrl,
    json: Json = False,
) -> None:
    """List every version of a learned concept, newest first: when, from what, with which recipe; and which is in use."""
    from omnifarm.concept.repository import ConceptRepository
    from omnifarm.store.open import open_store

    repository = ConceptRepository(open_store(store))
    in_use = repository.latest(name).version
    manifests = repository.history(name)
    if json:
        print_json([{"in_use": one.version == in_use, **one.to_json()} for one in manifests])
        return
    table = Table("version", "in use", "created (UTC)", "data", "backbone", "steps", "training", box=None)
    for one in manifests:
        table.add_row(
            one.version,
            "yes" if one.version == in_use else "",
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.created_at_s)),
            one.data_digest[:12],
            one.fingerprint[:12],
            str(one.recipe.get("steps", "?")),
            f"{one.train_s:.0f} s",
        )
    results.print(table)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The concept's name, without angle brackets.")],
    version: Annotated[str, typer.Argument(help="The version to use, as `omnifarm concept history` lists it.")],
    store: StoreUrl,
) -> None:
    """Use an older version of a concept from now on, until it is learned anew."""
    from omnifarm.concept.repository import ConceptRepository
    from omnifarm.store.open import open_store

    manifest = ConceptRepository(open_store(store)).roll_back(name, version)
    people.print(f"<{escape(name)}> is now version {manifest.version}")


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="The concept's name, without angle brackets.")],
    store: StoreUrl,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete everything a store holds of a concept: every version, checkpoints, prepared pictures, job records.

    The photographs stay where their owner keeps them. On a versioned bucket older versions go, too.
    """
    from omnifarm.clock import SystemClock
    from omnifarm.farm.erasure import erase_concept
    from omnifarm.farm.queue import JobQueue
    from omnifarm.store.open import open_store

    if not yes:
        typer.confirm(f"Delete everything of <{name}> from {store}?", abort=True)
    opened = open_store(store)
    report = erase_concept(name, store=opened, queue=JobQueue(opened, clock=SystemClock()))
    if json:
        print_json(report.to_json())
        return
    people.print(f"deleted {report.versions} versions of <{escape(name)}>, {report.objects} objects in all")
    for url in report.untraced:
        people.print(
            f"its photographs are gone from {escape(url)}: pictures prepared from them may be left in prepared/"
        )
