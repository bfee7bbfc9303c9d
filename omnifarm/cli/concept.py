"""`omnifarm concept`: check and import folders before training; list, show and delete what was learned."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from omnifarm.cli.output import Json, people, print_json, results

app = typer.Typer(no_args_is_help=True)
StoreUrl = Annotated[
    str, typer.Option("--store", help="s3://bucket/prefix or a local folder.", envvar="OMNIFARM_STORE")
]


Place = Annotated[
    str,
    typer.Argument(
        help="A folder of concepts in any layout, or s3://bucket/prefix; `yollava+FOLDER` and the like name the layout."
    ),
]


@app.command()
def validate(path: Place, json: Json = False) -> None:
    """Name every problem of a set of concepts, with what it would have been used for and how to mend it.

    The smallest concept is a folder with about ten photographs and a `concept.yaml` that says `class: dog`. Better
    ones add `info` (a sentence about looks), `extra_info` (facts no photograph shows), `negatives/` (look-alikes) and
    `test/` (held out; refused if it repeats a photograph).

    UnifyBench, UnifyBench++, Yo'LLaVA, MC-LLaVA, Yo'Chameleon and DreamBooth folders are read as they are; the layout
    is found by looking at them, or named: `omnifarm concept validate mcllava+/data/MulBench`. What each layout reads
    and refuses is in docs/datasets.md.

    Errors stop their concept from being learned (exit code 1); warnings say what will not be learned.
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


@app.command(name="import")
def import_concepts(
    path: Place,
    folder: Annotated[Path, typer.Argument(help="Where to write one plain folder a concept; must be empty or absent.")],
    only: Annotated[list[str] | None, typer.Option(help="Only this concept; may be repeated.")] = None,
    json: Json = False,
) -> None:
    """Copy concepts of any layout into plain folders, which are easy to read, mend and keep.

    Training reads every layout directly; import where you want to change texts, drop pictures or mix sets. A concept
    keeps its digest, so what was learned from the original counts as learned from the copy. Held-out pictures go to
    `test/`; held-out questions stay with the original, where the benchmark reads them.

    Example: `omnifarm concept import yollava+/data/yollava-data ./mine --only bo`, then
    `omnifarm concept validate ./mine`. Concepts that cannot be read are left out, with their reason (exit code 1).
    """
    from omnifarm.concept.datasets.load import load_concepts, load_held_out
    from omnifarm.concept.datasets.write_plain import write_plain
    from omnifarm.concept.spec import ConceptSpec
    from omnifarm.errors import ConceptError, ConfigError

    loaded = [(name, spec) for name, spec in load_concepts(path) if not only or name in only]
    if missing := sorted(set(only or ()) - {name for name, _ in loaded}):
        raise ConfigError(f"no concept named {', '.join(missing)} at {path}; leave --only out to import all")
    specs = [spec for _, spec in loaded if isinstance(spec, ConceptSpec)]
    failed = {name: str(error) for name, error in loaded if not isinstance(error, ConceptSpec)}
    tests = dict(load_held_out(path))
    held_out = {name: one for name, one in tests.items() if not isinstance(one, ConceptError)}
    for name in sorted({spec.name for spec in specs} - held_out.keys()):
        people.print(f"[yellow]no test pictures[/] of {escape(name)}: {escape(str(tests.get(name)))}")
    write_plain(folder, specs, held_out=held_out)
    if json:
        print_json({"folder": str(folder), "concepts": [spec.name for spec in specs], "failed": failed})
    else:
        for name, reason in failed.items():
            people.print(f"[red]left out[/] {escape(name)}: {escape(reason)}")
        results.print(f"wrote {len(specs)} concepts to {escape(str(folder))}")
    if failed:
        raise typer.Exit(1)


@app.command()
def negatives(
    path: Place,
    backbone: Annotated[str, typer.Option(help="Whose vision ranks: miniature or a checkpoint folder.")] = "miniature",
    keep: Annotated[int, typer.Option(min=1, help="Hard negatives a concept.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: hard_negatives.json in a local set.")
    ] = None,
    json: Json = False,
) -> None:
    """Find the pictures that look most like each concept without showing it, and name them in hard_negatives.json.

    Ranked are the set's `negatives/` folder (put any pictures there that show none of the concepts) and the other
    concepts' photographs. Training asks "Is <c> in the photo?" about the hard ones as often as about all others
    together. Pictures nearer to a photograph than the photographs are to each other may show the concept itself: they
    are listed as suspects and not used. Delete the file to undo it.
    """
    from omnifarm.cli.concept_negatives import mine

    summary = mine(path, backbone=backbone, keep=keep, out=out)
    if json:
        print_json(summary)
        return
    for name, found in summary["concepts"].items():
        nearest = found["hard"][0] if found["hard"] else None
        nearest_text = f", nearest {nearest['path']} ({nearest['similarity']:.2f})" if nearest else ""
        results.print(f"[bold]{escape(name)}[/]: {len(found['hard'])} hard negatives{escape(nearest_text)}")
        for suspect in found["suspects"]:
            results.print(f"  [yellow]may show it, not used:[/] {escape(suspect)}")
    people.print(f"written to {escape(summary['file'])}")


@app.command()
def describe(
    path: Annotated[str, typer.Argument(help="A plain concept folder or a folder of them, on this machine.")],
    backbone: Annotated[str, typer.Option(help="Who is asked: miniature or a checkpoint folder.")] = "miniature",
    json: Json = False,
) -> None:
    """Let the backbone draft questions and captions for concepts that came with photographs alone.

    Every photograph is shown to the untrained backbone; what it says about each, and what most of them say about the
    concept's looks, is appended to concept.yaml under a comment, the class noun replaced by the concept's name, with
    questions about its facts beside it. Read it before training: it is what a model saw, not what is true. Facts that no photograph shows (`extra_info`) remain yours
    to write. Concepts with questions are left alone.
    """
    from omnifarm.backbone.weights import load_backbone
    from omnifarm.cli.concept_describe import describe as draft

    written = draft(path, backbone=load_backbone(backbone))
    if json:
        print_json({"path": path, "entries": written})
        return
    for name, number in written.items():
        results.print(f"[bold]{escape(name)}[/]: {number} entries drafted; read them in its concept.yaml")
    if not written:
        people.print("every concept has questions already")


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
    manifests = repository.versions(name)
    if json:
        print_json([{"in_use": one.version == in_use, **one.to_json()} for one in manifests])
        return
    # A version is there to be copied into `omnifarm concept rollback`: it is never cut short.
    version = Column("version", no_wrap=True, min_width=max(len(one.version) for one in manifests))
    table = Table(version, "in use", "created (UTC)", "data", "backbone", "steps", "training", box=None)
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
def look(
    name: Annotated[str, typer.Argument(help="The concept's name, without angle brackets.")],
    photo: Annotated[Path, typer.Argument(help="Any picture, with it or without.")],
    store: StoreUrl,
    out: Annotated[Path, typer.Option(help="Picture to write: the photo, and beside it the photo lit by the map.")],
    backbone: Annotated[str, typer.Option(help="The one it was learned on.")] = "miniature",
    json: Json = False,
) -> None:
    """Show where a learned concept's identifier looks in a photo, for finding out what it was learned by.

    The attention of the identifier in "Is <name> in the photo?" to the photo's patches, mean over heads and layers.
    """
    from omnifarm.cli.concept_look import look as write_map

    found = write_map(name, photo, store=store, backbone=backbone, out=out)
    if json:
        print_json(found)
        return
    by_layer = ", ".join(f"{share:.1%}" for share in found["layers"])
    results.print(f"attention to the photo by layer: {by_layer}; written to {escape(found['file'])}")


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
    from omnifarm.errors import FarmError
    from omnifarm.farm.erasure import erase_concept
    from omnifarm.farm.queue import JobQueue
    from omnifarm.store.open import open_store

    if not yes:
        typer.confirm(f"Delete everything of <{name}> from {store}?", abort=True)
    opened = open_store(store)
    queue = JobQueue(opened, clock=SystemClock())
    report = erase_concept(name, store=opened, queue=queue)
    if json:
        print_json(report.to_json())
    if unreadable := queue.records.unreadable:
        raise FarmError(
            f"deleted what is known to be of <{name}>, but found {len(unreadable)} job records that cannot be read, such as "
            f"{min(unreadable)}: they may be of this concept, too; look at them or delete them, then repeat this"
        )
    if json:
        return
    people.print(f"deleted {report.versions} versions of <{escape(name)}>, {report.objects} objects in all")
