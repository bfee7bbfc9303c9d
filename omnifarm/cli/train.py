"""`omnifarm train`: learn concepts in this process, without a cluster."""

import uuid
from typing import Annotated

import typer

from omnifarm.cli.output import Json, json_object

app = typer.Typer(no_args_is_help=True)


@app.callback()
def train() -> None:
    """Learn concepts in this process, without a cluster."""


@app.command()
def local(
    concepts: Annotated[str, typer.Option(help="A concept folder, a folder of them, a UnifyBench folder, or s3://...")],
    store: Annotated[str, typer.Option(help="Where records, checkpoints and artifacts go: a folder or s3://...")],
    backbone: Annotated[str, typer.Option(help="miniature, a checkpoint folder, or a Hugging Face id.")] = "miniature",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps per concept; default: the backbone's recipe.")] = None,
    recipe: Annotated[str | None, typer.Option(help='More recipe settings as JSON, such as {"num_und": 8}.')] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this concept; may be repeated.")] = None,
    lanes: Annotated[int, typer.Option(min=1, help="Concepts trained side by side.")] = 4,
    lanes_per_pack: Annotated[
        int,
        typer.Option(min=1, help="Lanes that share one forward; 1 makes a lane bit for bit what it would be alone."),
    ] = 4,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Learn every concept at a place with one worker; exit code 1 if any failed.

    The same records, checkpoints and artifacts as on a cluster: stop it and go on here or there, run it again and
    what is learned stays.
    """
    from omnifarm.cli.job_progress import announce, showing_progress, summarise
    from omnifarm.clock import SystemClock
    from omnifarm.farm.job import JobState
    from omnifarm.farm.queue import JobQueue
    from omnifarm.farm.submission import inspect_backbone, submit_concepts
    from omnifarm.farm.worker import Worker
    from omnifarm.farm.worker_settings import WorkerSettings
    from omnifarm.store.open import open_store
    from omnifarm.store.probe import probe_conditional_writes
    from omnifarm.training.workbench import Workbench

    clock = SystemClock()
    began_s = clock.monotonic_s()
    opened = open_store(store)
    probe_conditional_writes(opened)
    queue = JobQueue(opened, clock=clock)
    overrides = {"steps": steps, **json_object(recipe, what="--recipe")}
    chosen = inspect_backbone(backbone, overrides=overrides)
    records = submit_concepts(concepts, queue=queue, backbone=chosen, only=only or ())
    job_ids = [record.job_id for record in records]
    announce(records, backbone=backbone, fingerprint=chosen.fingerprint, steps=chosen.recipe.steps)
    if any(not record.state.is_finished for record in records):
        workbench = Workbench.open(
            chosen.name,
            precision=chosen.recipe.precision,
            device=device,
            lanes_per_pack=lanes_per_pack,
            store=opened,
        )
        worker = Worker(
            f"local-{uuid.uuid4().hex[:8]}",
            store=opened,
            workbench=workbench,
            recipe=chosen.recipe,
            settings=WorkerSettings(lanes=lanes, lanes_per_pack=lanes_per_pack),
        )
        with showing_progress(queue, job_ids, clock):
            worker.run()
    records = queue.list(job_ids)
    summarise(records, took_s=clock.monotonic_s() - began_s, as_json=json)
    if any(record.state is not JobState.COMMITTED for record in records):
        raise typer.Exit(1)
