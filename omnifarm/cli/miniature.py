"""`omnifarm miniature`: the embedded drawn world."""

import shutil
from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from omnifarm.cli.output import Json, json_object, json_text, people, print_json, results

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


@app.command()
def evaluate(
    seed: Annotated[int, typer.Option(help="Which benchmark; every seed gives fresh concepts.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for concepts, artifacts and contact sheets; emptied first.")] = Path(
        "build/evaluation"
    ),
    persons: Annotated[int, typer.Option(min=0, help="How many persons.")] = 10,
    pets: Annotated[int, typer.Option(min=0, help="How many pets.")] = 5,
    objects: Annotated[int, typer.Option(min=0, help="How many objects.")] = 5,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps per concept; the recipe's own.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help='More recipe settings as JSON, such as {"is_coupled": true}.')
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as many as there are cores.")] = None,
    backbone: Annotated[str, typer.Option(help="The miniature, or a folder in its layout.")] = "miniature",
    baselines: Annotated[bool, typer.Option(help="Measure prompting baselines too.")] = True,
    json: Json = False,
) -> None:
    """Learn a fresh benchmark with the default recipe and measure answers, drawings, replay and edits.

    Pictures are read by the world's own judge, so every number is exact; baselines are the description in the prompt
    (tp), one photo in the prompt (ip) and nothing but the class (none).
    """
    from omnifarm.cli.miniature_evaluate import EvaluationPlan, default_workers
    from omnifarm.cli.miniature_evaluate import evaluate as run
    from omnifarm.errors import ConfigError

    marker = out / ".omnifarm-evaluation"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise ConfigError(
            f"expected {out} to be empty or an earlier evaluation, found other files; choose another --out"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    marker.touch()
    plan = EvaluationPlan(
        seed=seed,
        folder=out.resolve(),
        persons=persons,
        pets=pets,
        objects=objects,
        overrides={"steps": steps, **json_object(recipe, what="--recipe")},
        backbone=backbone,
        baselines=baselines,
    )
    report = run(plan, workers=workers or default_workers())
    (out / "report.json").write_text(json_text(report), encoding="utf-8")
    if json:
        print_json(report)
        return
    table = Table(
        "metric", "learned", "95 %", *report["baselines"], title=f"benchmark {seed}, {len(report['concepts'])} concepts"
    )
    for name, value in report["metrics"].items():
        interval = report["intervals"].get(name)
        spread = "" if interval is None else f"{interval[0]:.2f}..{interval[1]:.2f}"
        others = [f"{values[name]:.2f}" if name in values else "" for values in report["baselines"].values()]
        table.add_row(name, f"{value:.2f}", spread, *others)
    results.print(table)
    people.print(f"learning took {report['minutes']} min; contact sheets and report.json are in {out}")


@app.command()
def compare(
    first: Annotated[list[Path], typer.Option(help="report.json of an evaluation; repeat for several benchmarks.")],
    second: Annotated[list[Path], typer.Option(help="report.json of the same benchmarks learned in another way.")],
    json: Json = False,
) -> None:
    """Compare two ways of learning the same benchmarks, concept by concept, with 95 % intervals of the difference."""
    from omnifarm.cli.miniature_evaluate import compare as compared

    report = compared([_report(path) for path in first], [_report(path) for path in second])
    if json:
        print_json(report)
        return
    table = Table("metric", "first", "second", "second minus first, 95 %", title=f"{report['num_concepts']} concepts")
    for name, values in report["metrics"].items():
        low, high = values["interval"]
        table.add_row(
            name,
            f"{values['first']:.3f}",
            f"{values['second']:.3f}",
            f"{values['difference']:+.3f} ({low:+.3f}..{high:+.3f})",
        )
    results.print(table)


def _report(path: Path) -> dict[str, Any]:
    from omnifarm.errors import ConfigError

    try:
        report = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected the report.json of an evaluation at {path}: {error}") from error
    if not isinstance(report, dict) or "concepts" not in report or "seed" not in report:
        raise ConfigError(f"expected the report.json of `omnifarm miniature evaluate` at {path}, found something else")
    return report
