"""Learn every concept at a place: the job that a cluster is asked to run.

    ray job submit --working-dir . -- python jobs/train_concepts.py --concepts s3://bucket/concepts --store s3://bucket/farm
    python jobs/train_concepts.py --concepts ./my-concepts --store ./farm          (a private cluster on this machine)

Running it again does nothing for concepts that are committed and goes on with those that are not. A concept that
cannot be learned fails alone; the exit code is then 1.
"""

import json as jsonlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from omnifarm.clock import SystemClock
from omnifarm.errors import ConfigError, OmniFarmError
from omnifarm.farm import ray_cluster
from omnifarm.farm.job import JobRecord, JobState
from omnifarm.farm.planner import plan_cell
from omnifarm.farm.progress import ProgressMeter, duration
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import inspect_backbone, submit_concepts
from omnifarm.farm.worker import WorkerSettings
from omnifarm.logs import configure
from omnifarm.store.open import open_store
from omnifarm.store.probe import probe_conditional_writes

_LOOK_S = 5.0
_people = Console(stderr=True)


def main(
    concepts: Annotated[str, typer.Option(help="A concept folder, a folder of them, a UnifyBench folder, or s3://...")],
    store: Annotated[str, typer.Option(help="Where records, checkpoints and artifacts go: a folder or s3://...")],
    backbone: Annotated[str, typer.Option(help="miniature, a checkpoint folder, or a Hugging Face id.")] = "miniature",
    steps: Annotated[int | None, typer.Option(help="Steps per concept; default: the backbone's recipe.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16 weights.")] = None,
    recipe: Annotated[str | None, typer.Option(help='More recipe settings as JSON, such as {"num_und": 8}.')] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this concept; may be repeated.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; default: from the cluster.")] = None,
    lanes: Annotated[int | None, typer.Option(help="Concepts a worker trains side by side.")] = None,
    lanes_per_pack: Annotated[
        int, typer.Option(help="Lanes that share one forward; 1 makes a lane bit for bit what it would be alone.")
    ] = 4,
    checkpoint_s: Annotated[float, typer.Option(help="Seconds of work that a crash may cost.")] = 30.0,
    lease_s: Annotated[float, typer.Option(help="Seconds until a silent worker's concepts are taken over.")] = 40.0,
    max_failures: Annotated[int, typer.Option(help="Killed workers to replace before giving up.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
) -> None:
    """Learn every concept at a place; exit code 1 if any failed, 2 if the job could not run."""
    configure(level="WARNING")
    clock = SystemClock()
    began_s = clock.monotonic_s()
    try:
        overrides = {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": lr,
            "seed": seed,
            "precision": precision,
            **_json_object(recipe),
        }
        url, place = _resolve(store, what="--store"), _resolve(concepts, what="--concepts")
        opened = open_store(url)
        probe_conditional_writes(opened)
        queue = JobQueue(opened, clock=clock)
        chosen = inspect_backbone(backbone, overrides=overrides)
        records = submit_concepts(place, queue=queue, backbone=chosen, only=only or ())
        job_ids = [record.job_id for record in records]
        _announce(records, backbone=backbone, fingerprint=chosen.fingerprint, steps=chosen.recipe.steps)
        pending = [record for record in records if not record.state.is_finished]
        if pending:
            ray_cluster.connect()
            shape = plan_cell(
                num_jobs=len(pending),
                num_cpus=ray_cluster.cluster_cpus(),
                num_gpus=ray_cluster.cluster_gpus(),
                workers=workers,
                lanes=lanes,
            )
            _say(f"{shape.num_workers} workers with {shape.lanes} lanes each, {shape.cpus_per_worker} threads a worker")
            cell = ray_cluster.CellConfig(
                store=url,
                backbone=chosen.name,
                job_ids=tuple(record.job_id for record in pending),
                recipe=chosen.recipe,
                num_workers=shape.num_workers,
                cpus_per_worker=shape.cpus_per_worker,
                use_gpu=shape.use_gpu,
                max_failures=max_failures,
                worker=WorkerSettings(
                    lanes=shape.lanes,
                    lanes_per_pack=lanes_per_pack,
                    checkpoint_s=checkpoint_s,
                    lease_s=lease_s,
                    heartbeat_s=min(5.0, lease_s / 4),
                ),
            )
            with _showing_progress(queue, job_ids, clock):
                ray_cluster.run_cell(cell)
        # What was learned is what the store says, whatever the cell reported.
        records = queue.list(job_ids)
    except OmniFarmError as error:
        _people.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    _summarise(records, took_s=clock.monotonic_s() - began_s, as_json=json)
    if any(record.state is not JobState.COMMITTED for record in records):
        raise typer.Exit(1)


def _resolve(url: str, *, what: str) -> str:
    """Return a URL or an absolute path: workers run in other folders than this program."""
    if "://" in url or url.startswith(("memory:", "file:", "s3:")):
        if url.startswith("memory:"):
            raise ConfigError(f"{what}: memory: is seen by one process only; give a folder or s3://bucket/prefix")
        return url
    path = Path(url).expanduser()
    if not path.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise ConfigError(
            f"{what} {url!r} is relative, but a submitted job runs in Ray's copy of the working directory, which is "
            f"deleted later: give an absolute path or s3://..."
        )
    return str(path.resolve())


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        values = jsonlib.loads(text)
    except ValueError as error:
        raise ConfigError(f"--recipe must be a JSON object, found {text!r}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--recipe must be a JSON object, found {text!r}")
    return values


def _announce(records: Sequence[JobRecord], *, backbone: str, fingerprint: str, steps: int) -> None:
    counts = {state: sum(record.state is state for record in records) for state in JobState}
    _say(f"backbone {backbone} ({fingerprint[:12]}), {len(records)} concepts, {steps} steps each")
    if counts[JobState.COMMITTED]:
        _say(f"{counts[JobState.COMMITTED]} are learned already and stay as they are")
    for record in records:
        if record.state is JobState.FAILED:
            _say(f"skipped: {record.error}")


@contextmanager
def _showing_progress(queue: JobQueue, job_ids: Sequence[str], clock: SystemClock) -> Iterator[None]:
    """Show progress from the records while the block runs."""
    stop = threading.Event()
    show = _show_bar if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else _show_lines
    thread = threading.Thread(target=show, args=(queue, job_ids, ProgressMeter(clock), stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2 * _LOOK_S)


def _show_lines(queue: JobQueue, job_ids: Sequence[str], meter: ProgressMeter, stop: threading.Event) -> None:
    said = "starting workers"
    _say(said)
    while not stop.wait(_LOOK_S):
        try:
            look = meter.look(queue.list(job_ids))
        except OmniFarmError as error:
            _say(f"no progress to show: {error}")
            continue
        if look.steps_done and look.line() != said:
            said = look.line()
            _say(said)


def _show_bar(queue: JobQueue, job_ids: Sequence[str], meter: ProgressMeter, stop: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=_people) as bar:
        task = bar.add_task("starting workers", total=None, rate="")
        while not stop.wait(1.0):
            try:
                look = meter.look(queue.list(job_ids))
            except OmniFarmError:
                continue
            rate = "" if look.steps_per_s is None else f"{look.steps_per_s:.1f} steps/s"
            left = "" if look.left_s is None else f", {duration(look.left_s)} left"
            description = f"{look.committed}/{look.total} concepts" if look.steps_done else "starting workers"
            bar.update(
                task, completed=look.steps_done, total=look.steps_total, description=description, rate=rate + left
            )


def _summarise(records: Sequence[JobRecord], *, took_s: float, as_json: bool) -> None:
    if as_json:
        values = {"took_s": round(took_s, 3), "jobs": [record.to_json() for record in records]}
        typer.echo(jsonlib.dumps(values, ensure_ascii=False))
    table = Table("concept", "state", "steps", "attempts", box=None)
    for record in records:
        table.add_row(
            escape(record.name),
            record.state.value,
            f"{record.step}/{record.num_steps}",
            str(record.attempts),
        )
    _people.print(table)
    for record in records:
        if record.state is not JobState.COMMITTED and record.error:
            _say(f"{record.name}: {record.error.partition(chr(10))[0]}")
    learned = sum(record.state is JobState.COMMITTED for record in records)
    _say(f"{learned} of {len(records)} concepts are learned; this run took {duration(took_s)}")


def _say(line: str) -> None:
    _people.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
