"""Make removal pairs of a set of concepts, to be learned from as edits.

    python jobs/build_edit_pairs.py --concepts ./photos                 makes pairs in ./photos/edit_pairs
    (open ./photos/edit_pairs/review.html, decide, put decisions.json beside it)
    python jobs/build_edit_pairs.py --concepts ./photos                 takes the decisions in; makes what is missing

What a person accepts is learned by the next training of the set; nothing else is. The built-in
steps are classical image processing: fine for one subject on a calm background, poor otherwise, and the table says
which is which. With weights at hand, register a detector, a segmenter or an inpainter of your own as an entry point
(see omnifarm/concept/edit_pairs/methods.py) and name it here.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from omnifarm.cli.output import people, print_json, results
from omnifarm.concept.datasets.load import load_concepts, split_layout
from omnifarm.concept.edit_pairs.build import build_pairs
from omnifarm.concept.edit_pairs.methods import known_methods, load_methods
from omnifarm.concept.edit_pairs.review import DECISIONS, PAGE, apply_decisions, read_decisions, write_page
from omnifarm.concept.edit_pairs.table import FILE, FOLDER, Pair, PairState, read_pairs, write_pairs
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConfigError, OmniFarmError

PAPER_PASS_RATE = 0.90
"""Share of the paper's removal pairs that passed its automatic and manual check (section 3.3)."""


def main(
    concepts: Annotated[str, typer.Option(help="A set of concepts in any layout: a folder or s3://...")],
    out: Annotated[
        Path | None, typer.Option(help=f"Folder for table, pictures and page; default: {FOLDER}/ inside a local set.")
    ] = None,
    decisions: Annotated[
        Path | None, typer.Option(help=f"What the review page saved; default: {DECISIONS} in the output folder.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this concept; may be repeated.")] = None,
    locator: Annotated[str, typer.Option(help=f"One of {', '.join(known_methods('locator'))}.")] = "contrast",
    segmenter: Annotated[str, typer.Option(help=f"One of {', '.join(known_methods('segmenter'))}.")] = "grabcut",
    inpainter: Annotated[str, typer.Option(help=f"One of {', '.join(known_methods('inpainter'))}.")] = "patches",
    keep_others: Annotated[
        int,
        typer.Option(min=0, help="Pairs a concept in which another of its class stays: only the concept is removed."),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the inpainter.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
) -> None:
    """Make, check and review removal pairs; exit code 1 if any concept could not be read."""
    try:
        folder = _output_folder(concepts, out)
        loaded = load_concepts(concepts)
        specs = {name: spec for name, spec in loaded if isinstance(spec, ConceptSpec)}
        chosen = _chosen(loaded, only or [])
        path = folder / FILE
        existing = read_pairs(path.read_bytes(), where=str(path)) if path.exists() else []
        saved = decisions or (folder / DECISIONS)
        if decisions is not None or saved.exists():
            existing, unknown = apply_decisions(existing, read_decisions(saved))
            for pair_id in unknown:
                people.print(f"[yellow]decided, but not there:[/] {escape(pair_id)}")
        methods = load_methods(locator=locator, segmenter=segmenter, inpainter=inpainter)
        pairs: list[Pair] = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("making pairs", total=sum(len(specs[name].images) for name in chosen))
            made = build_pairs(
                specs,
                existing=existing,
                methods=methods,
                folder=folder,
                only=chosen,
                seed=seed,
                max_kept=keep_others,
                is_complete=len(specs) == len(loaded),
            )
            try:
                for pair in made:
                    pairs.append(pair)
                    progress.update(task, completed=len(pairs))
            except BaseException:
                # Whatever went wrong, the next run goes on from here.
                seen = {pair.pair_id for pair in pairs}
                write_pairs(path, [*pairs, *(pair for pair in existing if pair.pair_id not in seen)])
                raise
        write_pairs(path, pairs)
        write_page(folder, pairs)
    except OmniFarmError as error:
        people.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    _summarise(pairs, folder=folder, as_json=json)
    failed = [reason for _, reason in loaded if not isinstance(reason, ConceptSpec)]
    for reason in failed:
        people.print(f"[red]not read:[/] {escape(str(reason))}")
    if failed:
        raise typer.Exit(1)


def _output_folder(concepts: str, out: Path | None) -> Path:
    place = split_layout(concepts)[1]
    if out is None and "://" in place.removeprefix("file://"):
        raise ConfigError(f"--out must name a folder when the concepts lie at {place}; copy it into the set afterwards")
    folder = out or Path(place.removeprefix("file://")).expanduser() / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder} ({error.strerror}); name another folder with --out") from error
    return folder


def _chosen(loaded: Sequence[tuple[str, ConceptSpec | OmniFarmError]], only: list[str]) -> list[str]:
    """Return the names of the concepts to make pairs of."""
    if missing := sorted(set(only) - {name for name, _ in loaded}):
        raise ConfigError(
            f"no concept is named {', '.join(missing)}; there are: {', '.join(name for name, _ in loaded)}"
        )
    return [name for name, spec in loaded if isinstance(spec, ConceptSpec) and (not only or name in only)]


def _summarise(pairs: list[Pair], *, folder: Path, as_json: bool) -> None:
    by_state = Counter(pair.state for pair in pairs)
    made = [pair for pair in pairs if pair.target]
    passed = sum(pair.state.has_passed for pair in made)
    rate = passed / len(made) if made else 0.0
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "page": str(folder / PAGE),
                "pairs": len(pairs),
                "states": {str(state): by_state[state] for state in PairState},
                "pass_rate": rate,
                "paper_pass_rate": PAPER_PASS_RATE,
            }
        )
        return
    table = Table("concept", *PairState, box=None)
    for name in sorted({pair.concept for pair in pairs}):
        counts = Counter(pair.state for pair in pairs if pair.concept == name)
        table.add_row(escape(name), *(str(counts[state]) for state in PairState))
    results.print(table)
    results.print(f"{passed} of {len(made)} removals passed: {rate:.0%} (the paper's models: {PAPER_PASS_RATE:.0%})")
    people.print(f"look at them: {escape(str(folder / PAGE))}")


if __name__ == "__main__":
    typer.run(main)
