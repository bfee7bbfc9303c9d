"""`omnifarm bench`: run OmniPBench on this machine, score it again, look at what is asked, compare two runs."""

import json as json_module
import os
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from omnifarm.cli import bench_options as option
from omnifarm.cli.output import Json, people, print_json, results

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Score concepts on OmniPBench: the paper's table, measured."""


@app.command()
def run(
    data: option.Data,
    store: option.StoreUrl,
    backbone: option.Backbone = "miniature",
    quick: option.Quick = False,
    variants: option.Variants = "default",
    baselines: option.Baselines = "default",
    others: option.Others = "",
    others_url: option.OthersUrl = option.OPENAI,
    local_models: option.LocalModels = "",
    seeds: option.Seeds = "0",
    steps: option.Steps = None,
    recipe: option.Recipe = None,
    concepts: option.Concepts = None,
    images: option.Images = None,
    name: option.Name = "",
    workers: option.Workers = None,
    at_once: option.AtOnce = option.AT_ONCE,
    retry_failed: option.RetryFailed = False,
    protocol: option.ProtocolName = "strict",
    judge: option.Judge = "",
    judge_url: option.JudgeUrl = option.OPENAI,
    judge_concurrency: option.JudgeAtOnce = 4,
    judge_prices: option.JudgePrices = "0,0",
    clip: option.Clip = option.CLIP,
    dino: option.Dino = option.DINO,
    arcface: option.ArcFace = None,
    json: Json = False,
) -> None:
    """Learn, ask, score and report, in processes of this machine; run it again to go on after an interruption.

    On a cluster: `python jobs/run_benchmark.py` with the same options.
    """
    from omnifarm.cli import bench_run
    from omnifarm.cli import bench_settings as settings
    from omnifarm.cli.bench_work import LocalWork

    plan = settings.plan_of(
        data=data,
        backbone=backbone,
        quick=quick,
        variants=variants,
        baselines=baselines,
        others=others,
        others_url=others_url,
        local_models=local_models,
        seeds=seeds,
        steps=steps,
        recipe=recipe,
        concepts=concepts,
        images=images,
        name=name,
    )
    scoring = settings.scoring_of(
        protocol=protocol,
        judge=judge,
        judge_url=judge_url,
        judge_concurrency=judge_concurrency,
        judge_prices=judge_prices,
        clip=clip,
        dino=dino,
        arcface=arcface,
    )
    work = LocalWork(workers=workers or len(os.sched_getaffinity(0)))
    prepared = bench_run.prepare(plan, store_url=store)
    bench_run.say(f"run {plan.run}: {len(plan.rows)} rows, {len(prepared.data.benchmark.items)} items")
    bench_run.carry_out(prepared, work, at_once=at_once, retry_failed=retry_failed)
    show(bench_run.score(prepared, scoring, command=command_line()), store=store, as_json=json)


@app.command()
def score(
    store: option.StoreUrl,
    name: Annotated[str, typer.Option("--name", help="Of the run, as `bench run` said it.")],
    protocol: option.ProtocolName = "strict",
    judge: option.Judge = "",
    judge_url: option.JudgeUrl = option.OPENAI,
    judge_concurrency: option.JudgeAtOnce = 4,
    judge_prices: option.JudgePrices = "0,0",
    clip: option.Clip = option.CLIP,
    dino: option.Dino = option.DINO,
    arcface: option.ArcFace = None,
    json: Json = False,
) -> None:
    """Score the replies of a run again, with another judge or encoder; nothing is learned or drawn anew."""
    from omnifarm.bench.plan import PREFIX, RunPlan
    from omnifarm.cli import bench_run
    from omnifarm.cli import bench_settings as settings
    from omnifarm.store.open import open_store

    scoring = settings.scoring_of(
        protocol=protocol,
        judge=judge,
        judge_url=judge_url,
        judge_concurrency=judge_concurrency,
        judge_prices=judge_prices,
        clip=clip,
        dino=dino,
        arcface=arcface,
    )
    saved = json_module.loads(open_store(store).get(f"{PREFIX}/{name}/plan.json").data)
    prepared = bench_run.prepare(RunPlan.from_json(saved["plan"]), store_url=store)
    show(bench_run.score(prepared, scoring, command=command_line()), store=store, as_json=json)


@app.command()
def items(
    data: option.Data,
    quick: option.Quick = False,
    concepts: option.Concepts = None,
    images: option.Images = None,
    json: Json = False,
) -> None:
    """Say what would be asked about some data, and what is missing from it, without asking anything."""
    import tempfile
    from collections import Counter
    from pathlib import Path

    from omnifarm.bench.data.load import load_benchmark, with_gaps
    from omnifarm.cli import bench_settings as settings

    plan = settings.plan_of(data=data, quick=quick, concepts=concepts, images=images)
    with tempfile.TemporaryDirectory() as scratch:
        benchmark = with_gaps(load_benchmark(data, sizes=plan.sizes, scratch=Path(scratch))).benchmark
    counts = Counter((item.concept, item.task) for item in benchmark.items)
    tasks = list(dict.fromkeys(item.task for item in benchmark.items))
    if json:
        found = {one.name: {task: counts[one.name, task] for task in tasks} for one in benchmark.concepts}
        print_json({"concepts": found, "notes": list(benchmark.notes), "digest": benchmark.digest()})
        return
    table = Table("concept", "class", *tasks)
    for one in benchmark.concepts:
        table.add_row(one.name, one.spec.class_noun, *(str(counts[one.name, task]) for task in tasks))
    results.print(table)
    for note in benchmark.notes:
        people.print(f"note: {note}", markup=False)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="Folder of a run (STORE/benchmark/NAME), or its report.json.")],
    after: Annotated[str, typer.Argument(help="The other run.")],
    tolerance: Annotated[float, typer.Option(min=0, help="Moves up to this are no news.")] = 0.02,
    json: Json = False,
) -> None:
    """Compare two runs cell by cell; exit code 1 if anything got worse."""
    from omnifarm.bench import compare as comparing

    differences = comparing.compare(_report(before), _report(after), tolerance=tolerance)
    worse = [one for one in differences if one.change == "worse"]
    if json:
        print_json({"worse": len(worse), "differences": [asdict(one) for one in differences]})
    else:
        table = Table("row", "column", "before", "after", "difference, 95 %", title=f"{len(differences)} cells")
        for one in sorted(differences, key=lambda one: ("worse", "better", "same").index(one.change)):
            if one.change != "same":
                color = "red" if one.change == "worse" else "green"
                interval = "" if one.low is None else f" [{one.low:+.3f}, {one.high:+.3f}]"
                by = (
                    "" if one.after is None else f" {one.after - one.before:+.3f}{interval.replace('[', chr(92) + '[')}"
                )
                after = "none" if one.after is None else f"{one.after:.3f}"
                table.add_row(one.row, one.column, f"{one.before:.3f}", after, f"[{color}]{one.change}[/]{by}")
        results.print(table)
        people.print(f"{len(worse)} worse of {len(differences)} cells, tolerance {tolerance}")
    if worse:
        raise typer.Exit(1)


def show(report: dict[str, Any], *, store: str, as_json: bool) -> None:
    """Print a finished report: all of it as JSON, or its paper columns and where the page is."""
    from omnifarm.bench.report.markdown import SECTIONS, cell_text, columns_of, rows_of

    if as_json:
        print_json(report)
        return
    for section, title in (one for one in SECTIONS if one[0] in ("paper", "world")):
        measured = {
            key for cells in report["cells"].values() for key, cell in cells.items() if cell["value"] is not None
        }
        columns = [column for column in columns_of(report, section) if column["key"] in measured]
        if not columns:
            continue
        table = Table(title=f"{report['run']}: {title}", box=None, padding=(0, 0, 0, 1))
        table.add_column("row", no_wrap=True)
        for column in columns:
            table.add_column(column["title"], justify="right", min_width=5)
        for name, _, cells in rows_of(report, columns):
            found = [cells.get(column["key"]) for column in columns]
            table.add_row(name, *("-" if cell is None else cell_text(cell).partition(" [")[0] for cell in found))
        results.print(table)
    people.print(f"report: {store.rstrip('/')}/{report['folder']}/report.html", markup=False)


def command_line() -> str:
    """Return what was typed, for the report; no key is ever an option."""
    return " ".join(["omnifarm", *sys.argv[1:]])


def _report(place: str) -> dict[str, Any]:
    from omnifarm.bench.report.build import SCHEMA_VERSION
    from omnifarm.errors import ConfigError
    from omnifarm.store.open import open_store

    folder = place.removesuffix("/report.json")
    try:
        report = json_module.loads(open_store(folder).get("report.json").data)
    except ValueError as error:
        raise ConfigError(f"{folder}/report.json is no report ({error}); score the run again") from error
    if not isinstance(report, dict) or report.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(f"{folder}/report.json is no report of this version; score the run again")
    return report
