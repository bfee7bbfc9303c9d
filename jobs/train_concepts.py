"""Learn every concept at a place: the job that a cluster is asked to run.

    ray job submit --working-dir . -- python jobs/train_concepts.py --concepts s3://bucket/concepts --store s3://bucket/farm
    python jobs/train_concepts.py --concepts ./my-concepts --store ./farm          (a private cluster on this machine)

Running it again does nothing for concepts that are committed and goes on with those that are not. A concept that
cannot be learned fails alone; the exit code is then 1.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from omnifarm.cli.job_progress import announce, say, showing_progress, summarise
from omnifarm.cli.output import json_object, people
from omnifarm.clock import SystemClock
from omnifarm.concept.datasets.load import split_layout
from omnifarm.errors import ConfigError, OmniFarmError
from omnifarm.farm import ray_cluster
from omnifarm.farm.job import JobState
from omnifarm.farm.planner import plan_cell
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import inspect_backbone, submit_concepts
from omnifarm.farm.worker import WorkerSettings
from omnifarm.logs import configure
from omnifarm.store.open import open_store
from omnifarm.store.probe import probe_conditional_writes


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
            **json_object(recipe, what="--recipe"),
        }
        url, place = _resolve(store, what="--store"), _resolve(concepts, what="--concepts")
        opened = open_store(url)
        probe_conditional_writes(opened)
        queue = JobQueue(opened, clock=clock)
        chosen = inspect_backbone(backbone, overrides=overrides)
        records = submit_concepts(place, queue=queue, backbone=chosen, only=only or ())
        job_ids = [record.job_id for record in records]
        announce(records, backbone=backbone, fingerprint=chosen.fingerprint, steps=chosen.recipe.steps)
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
            say(f"{shape.num_workers} workers with {shape.lanes} lanes each, {shape.cpus_per_worker} threads a worker")
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
            with showing_progress(queue, job_ids, clock):
                ray_cluster.run_cell(cell)
        # What was learned is what the store says, whatever the cell reported.
        records = queue.list(job_ids)
    except OmniFarmError as error:
        people.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    summarise(records, took_s=clock.monotonic_s() - began_s, as_json=json)
    if any(record.state is not JobState.COMMITTED for record in records):
        raise typer.Exit(1)


def _resolve(url: str, *, what: str) -> str:
    """Return a URL or an absolute path: workers run in other folders than this program."""
    layout, url = split_layout(url)
    if layout:
        return f"{layout}+{_resolve(url, what=what)}"
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


if __name__ == "__main__":
    typer.run(main)
